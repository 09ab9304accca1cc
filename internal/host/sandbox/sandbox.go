// Package sandbox is the lifecycle of the sandboxes of one host: it creates and destroys
// them from an image, a network slot and a runtime, owns the truth about what state each
// one is in, keeps a record of each on disk, and removes what a killed process of ours
// left. It must not know the host RPC, nor who asks.
package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
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
	Reason       string // why it is stopped or in error
}

// CreateRequest says what to make. The caller chooses the id.
type CreateRequest struct {
	ID          string
	Template    string
	Resources   Resources
	Env         map[string]string // of every process of the sandbox
	DefaultUser string            // empty: the template's
}

// Images finds the images that sandboxes are made from.
type Images interface {
	Lookup(name string) (image.Image, error)
	List() ([]image.Image, error)
}

// Network lends network slots.
type Network interface {
	Acquire(ctx context.Context) (network.Slot, error)
	Release(ctx context.Context, slot network.Slot) error
	Sweep(ctx context.Context, keep []int) error
}

// Config is what a Service needs.
type Config struct {
	// Dir holds the records, one file for each sandbox.
	Dir string
	// EnvdDir is a directory that holds the guest daemon as "envd" and nothing else.
	EnvdDir string
	Images  Images
	Network Network
	Runtime runtime.Driver
	// Max is the most that one sandbox may ask for on this machine.
	Max Resources
	Log *slog.Logger
}

// Service owns the sandboxes of this host. It is safe for concurrent use. Close ends
// all of them.
type Service struct {
	cfg     Config
	records records
	changes *changes

	// life ends when the Service is closed; what watches a sandbox ends with it.
	life     context.Context
	end      context.CancelFunc
	watchers sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry
}

// entry is a sandbox and what it holds. The guard for its state is Service.mu; what is
// under "resources" is written by the create that owns the entry and read only while the
// status says that it is there.
type entry struct {
	// telling is held while a change of the sandbox is made known, so that the record and
	// the watchers hear of changes in their order. It is taken before Service.mu.
	telling sync.Mutex

	sandbox Sandbox

	// resources; held is whether any may still have to be given back
	held  bool
	slot  network.Slot
	token string
	guest *guestclient.Client

	// settled is closed when the create or end that works on the entry is done with it.
	// Whoever begins the next one puts a channel of its own here, and closes that one.
	settled chan struct{}
	// cancel ends a create in flight, with a reason.
	cancel context.CancelCauseFunc
}

// Open returns the Service of this host after it has removed everything that a process
// of ours left behind when it was killed.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	s := &Service{
		cfg: cfg, records: records{dir: cfg.Dir}, changes: newChanges(),
		life: life, end: end, entries: map[string]*entry{},
	}
	if err := s.removeLeftovers(ctx); err != nil {
		end()
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
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
	return e.guest, nil
}

// idPattern is what ids look like: they become host names, file names and cgroups. They
// are all of one length, so that none begins another: runsc takes the beginning of an id
// for the id.
var idPattern = regexp.MustCompile(`^sb[a-z0-9]{20}$`)

// set changes an entry's sandbox under the lock, keeps its record, and tells watchers.
func (s *Service) set(e *entry, change func(*Sandbox)) {
	e.telling.Lock()
	defer e.telling.Unlock()
	s.mu.Lock()
	change(&e.sandbox)
	now, slot, token := e.sandbox, e.slot, e.token
	s.mu.Unlock()
	if err := s.records.write(record{Sandbox: now, Slot: slot, Token: token}); err != nil {
		// The state in memory is right; only a crash from here on would miss it, and
		// what it would leave is still found by the runtime's and the network's lists.
		s.cfg.Log.Error("write record", "sandbox", now.ID, "error", err)
	}
	s.changes.publish(now)
}
