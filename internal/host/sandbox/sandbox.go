// Package sandbox is the lifecycle of the sandboxes of one host: it creates, pauses,
// resumes, copies and destroys them from images, snapshots, network slots and a runtime,
// owns the truth about what state each one is in, keeps a record of each on disk, and finds
// its sandboxes again after it has been stopped or killed. It must not know the host RPC,
// nor who asks.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/metering"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// Resources is what a sandbox may use.
type Resources struct {
	VCPUs    int `json:"vcpus"`
	MemoryMB int `json:"memory_mb"` // MiB
	DiskMB   int `json:"disk_mb"`   // MiB that the guest may write
}

// Sandbox is a sandbox as its host sees it.
type Sandbox struct {
	ID           string
	Status       Status
	Template     string
	Resources    Resources
	Runtime      string
	HostIP       string // the host's end of the sandbox's link
	GuestIP      string
	CreatedAt    time.Time
	StartedAt    time.Time // zero until it runs
	LastActiveAt time.Time
	Reason       string // why it is in this state
	// PausedAt is when the state was written down that it can be resumed from, and
	// SnapshotBytes its size on the disk. Zero when there is none.
	PausedAt      time.Time
	SnapshotBytes int64
}

// Images finds the images that sandboxes are made from.
type Images interface {
	Lookup(name string) (image.Image, error)
	List() ([]image.Image, error)
}

// Network lends network slots, which outlive this process.
type Network interface {
	Slots
	Traffic
}

// Slots is how network slots are taken and given back.
type Slots interface {
	Acquire(ctx context.Context) (network.Slot, error)
	Release(ctx context.Context, slot network.Slot) error
	// Park is Release for a guest that is away and may come back with its connections.
	Park(ctx context.Context, slot network.Slot) error
	// Unpark brings a parked slot back, or else another one. Either way it is held.
	Unpark(ctx context.Context, slot network.Slot) (network.Slot, error)
	// Adopt takes over a slot that an earlier process of ours has left.
	Adopt(ctx context.Context, slot network.Slot) error
	Sweep(ctx context.Context, keep []int) error
}

// Traffic is what is let through to guests and from them.
type Traffic interface {
	// Hold lets nothing through until Unhold.
	Hold(ctx context.Context, slot network.Slot) error
	Unhold(ctx context.Context, slot network.Slot) error
	// SetRate bounds what goes up from the guest and down to it, in bits per second.
	SetRate(ctx context.Context, slot network.Slot, up, down int64) error
	// Passed returns how many bytes have gone up from the guest and down to it.
	Passed(slot network.Slot) (up, down uint64, err error)
}

// Runtime runs sandboxes and writes them down; what it runs outlives this process.
type Runtime interface {
	runtime.Driver
	runtime.Checkpointer
	runtime.Meter
}

// Config is what a Service needs.
type Config struct {
	// Dir holds the records, one file for each sandbox. MeterDir holds what they have used.
	Dir, MeterDir string
	// EnvdDir is a directory that holds the guest daemon as "envd" and nothing else.
	EnvdDir   string
	Images    Images
	Network   Network
	Runtime   Runtime
	Snapshots *snapshot.Store
	// Max is the most that one sandbox may ask for on this machine.
	Max   Resources
	Admit Admission
	// NetworkRate bounds what a sandbox sends and what it receives, each in bits per
	// second; 0: nothing does.
	NetworkRate int64
	Log         *slog.Logger
	// At, unless nil, is called at every fault point, by its name in Points. It is for
	// tests, which end the process there.
	At func(point string)
}

// Service owns the sandboxes of this host. It is safe for concurrent use. It ends with
// Close, which may leave the sandboxes to the next one.
type Service struct {
	cfg     Config
	records records
	changes *changes
	room    *room
	warm    *warmth
	meter   *metering.Meter

	// life ends when the Service is closed; what watches a sandbox ends with it.
	life     context.Context
	end      context.CancelFunc
	watchers sync.WaitGroup

	mu sync.Mutex
	// stopping is whether nothing begins but pauses, closed whether those do not either.
	stopping, closed bool
	entries          map[string]*entry
}

// entry is a sandbox and what belongs to it. Its fields are guarded by Service.mu.
type entry struct {
	// telling is held while a change of the sandbox is made known, so that the record and
	// the watchers hear of changes in their order. It is taken before Service.mu.
	telling sync.Mutex

	state
	// former is the sandbox before the operation that works on it.
	former Sandbox

	// settled is closed when the operation that works on the entry is done with it. Whoever
	// begins the next one puts a channel of its own here, and closes that one.
	settled chan struct{}
	// cancel ends the operation that works on the entry, with a reason.
	cancel context.CancelCauseFunc
}

// state is what an entry's record keeps. All but the sandbox's LastActiveAt is changed only
// by the operation that works on the entry, so that one may read it without the lock.
type state struct {
	sandbox Sandbox
	origin  origin
	// snapshot is the one that it can be resumed from, and draft the one that a pause under
	// way is writing; empty when there is none.
	snapshot, draft string
	// fork is the snapshot that it was made from by a fork that has not come to its end. A
	// process that finds both removes the sandbox.
	fork string
	// untaken is what a sandbox was, running or being paused, whose run goes on but could
	// not be taken over yet; empty for any other. Meanwhile it is Failed.
	untaken Status
	// told is the time of what the guest was told last; it ignores what is older.
	told time.Time
	// run is nil while there is nothing in the runtime or network that would be its.
	run *run
	// slot is the one of the latest run; that of a paused sandbox is parked.
	slot network.Slot
}

// origin is what a sandbox is made of, and what bringing it back needs again.
type origin struct {
	Image       string            `json:"image"`     // host path
	GuestDir    string            `json:"guest_dir"` // host path
	Env         map[string]string `json:"env,omitempty"`
	DefaultUser string            `json:"default_user,omitempty"`
	// Token is what the guest expects on every request. Secret.
	Token string `json:"token"`
}

// run is one life of a sandbox: from its boot or restore to its end or pause.
type run struct {
	id    string // as the runtime knows it
	slot  network.Slot
	guest *guestclient.Client
	place *place // the room that the run takes on the machine
}

// Open returns the Service of this host. It takes over the sandboxes that run from an
// earlier one, finishes what that one had begun, and removes what nobody needs.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	if err := errors.Join(os.MkdirAll(cfg.Dir, 0o700), os.MkdirAll(cfg.MeterDir, 0o700)); err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	s := &Service{
		cfg: cfg, records: newRecords(cfg.Dir), changes: newChanges(), room: newRoom(cfg.Admit),
		life: life, end: end, entries: map[string]*entry{},
	}
	s.warm = newWarmth(s)
	var err error
	if s.meter, err = metering.New(cfg.MeterDir, s.usage, cfg.Log); err != nil {
		end()
		return nil, fmt.Errorf("open what sandboxes have used: %w", err)
	}
	if err := s.recover(ctx); err != nil {
		end()
		s.watchers.Wait()
		return nil, fmt.Errorf("take over what an earlier run left: %w", err)
	}
	s.watchers.Go(func() { s.meter.Run(life) })
	return s, nil
}

// Max returns the most that one sandbox may ask for here.
func (s *Service) Max() Resources { return s.cfg.Max }

// Runtime returns the name of the runtime that sandboxes get here.
func (s *Service) Runtime() string { return s.cfg.Runtime.Name() }

// Templates returns the names of what sandboxes can be made from.
func (s *Service) Templates() ([]string, error) {
	images, err := s.cfg.Images.List()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	names := make([]string, 0, len(images))
	for _, im := range images {
		names = append(names, im.Name)
	}
	return names, nil
}

// Get returns one sandbox, or fault.NotFound.
func (s *Service) Get(id string) (Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(id)
	if err != nil {
		return Sandbox{}, err
	}
	return e.sandbox, nil
}

// find returns an entry; the caller holds s.mu.
func (s *Service) find(id string) (*entry, error) {
	e, ok := s.entries[id]
	if !ok {
		return nil, fault.New(fault.NotFound, "sandbox %q does not exist on this host", id)
	}
	return e, nil
}

// Guest returns the client of a running sandbox's guest and marks the sandbox as active.
// Any other state is fault.InvalidState.
func (s *Service) Guest(id string) (*guestclient.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if err := require(e.sandbox, actUse); err != nil {
		return nil, err
	}
	e.sandbox.LastActiveAt = time.Now()
	return e.run.guest, nil
}

// idPattern is what ids look like: they become host names, file names and cgroups. They
// are all of one length, so that none begins another: runsc takes the beginning of an id
// for the id.
var idPattern = regexp.MustCompile(`^sb[a-z0-9]{20}$`)

// set changes an entry under the lock, keeps its record, and tells watchers. Of a sandbox
// that is forgotten nothing is kept or told any more.
func (s *Service) set(e *entry, change func(*state)) { s.change(e, change, s.records.quick) }

// setDurable is set for a sandbox that is on the disk alone: a loss of power must not leave
// less of its record than there was.
func (s *Service) setDurable(e *entry, change func(*state)) { s.change(e, change, s.records.durable) }

// show is set for a change that the record is not to know yet: what it says, it says durably.
func (s *Service) show(e *entry, change func(*state)) {
	s.change(e, change, func(string, []byte, fs.FileMode) error { return nil })
}

func (s *Service) change(e *entry, change func(*state), how writer) {
	e.telling.Lock()
	defer e.telling.Unlock()
	s.mu.Lock()
	known := s.entries[e.sandbox.ID] == e
	change(&e.state)
	now := e.state
	s.mu.Unlock()
	if !known {
		return
	}
	if err := s.records.write(now.record(), how); err != nil {
		// The state in memory is right; only a crash from here on would miss it, and
		// what it would leave is still found by the runtime's and the network's lists.
		s.cfg.Log.Error("write record", "sandbox", now.sandbox.ID, "error", err)
	}
	s.changes.publish(now.sandbox)
}

// keep is set for a change that decides what a loss of power leaves: nobody sees it before
// its record has reached the disk. When that fails nothing has changed but, perhaps, the
// record: the caller sets it again.
func (s *Service) keep(e *entry, change func(*state)) error {
	e.telling.Lock()
	defer e.telling.Unlock()
	s.mu.Lock()
	next := e.state
	s.mu.Unlock()
	change(&next)
	if err := s.records.write(next.record(), s.records.durable); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	s.mu.Lock()
	next.sandbox.LastActiveAt = e.sandbox.LastActiveAt
	e.state = next
	s.mu.Unlock()
	s.changes.publish(next.sandbox)
	return nil
}

// note lets only the record know of a change that is on its way, in case this process dies
// before the change is made.
func (s *Service) note(e *entry, change func(*state), how writer) error {
	e.telling.Lock()
	defer e.telling.Unlock()
	s.mu.Lock()
	next := e.state
	s.mu.Unlock()
	change(&next)
	if err := s.records.write(next.record(), how); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}
