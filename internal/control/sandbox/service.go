package sandbox

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Store keeps sandboxes. Its not_found means that there is no such row and nothing else.
type Store interface {
	Insert(ctx context.Context, s Sandbox) error
	Get(ctx context.Context, id string) (Sandbox, error)
	List(ctx context.Context, f Filter) ([]Sandbox, error)
	// Save writes the status, the reason, the times and what only the host knew, if the
	// sandbox is in one of the statuses from; it reports whether it was. The last activity
	// and what the deadline counts from only go forward; the clocks' settings stay as they are.
	Save(ctx context.Context, s Sandbox, from ...Status) (bool, error)
	// SetStatus changes the status and the reason if the sandbox is in one of the
	// statuses from; it reports whether it was.
	SetStatus(ctx context.Context, id string, to Status, reason string, at time.Time, from ...Status) (bool, error)
	// Expire is SetStatus of a running sandbox whose time has come, unless anything but its
	// activity was written since read was: somebody may just have been told that its time is
	// another.
	Expire(ctx context.Context, read Sandbox, to Status, reason string, at time.Time) (bool, error)
	// Delete reports whether there was something to delete.
	Delete(ctx context.Context, id string) (bool, error)
}

// ClockStore keeps what the clocks of sandboxes go by.
type ClockStore interface {
	// Touch writes when sandboxes were last active; unknown ids are passed over.
	Touch(ctx context.Context, active map[string]time.Time) error
	// SetClocks writes what t says, and nothing else, if the sandbox is in one of the statuses
	// from; it reports whether it was. A deadline counts from at.
	SetClocks(ctx context.Context, id string, t Timeouts, at time.Time, from ...Status) (bool, error)
}

// Config is what the package's services work with.
type Config struct {
	Store         Store
	Clocks        ClockStore
	SnapshotStore SnapshotStore
	Host          Host
	Snapshots     HostSnapshots
	Processes     HostProcesses
	Files         HostFiles
	Ports         HostPorts
	// Warm says of which snapshots, by their names, how many sandboxes are kept ready.
	Warm map[string]int
	// Retention says which snapshots go by themselves.
	Retention Retention
	Log       *slog.Logger
}

// Service is the life of sandboxes. Make it with New and let Run run beside it. It is
// safe for concurrent use.
type Service struct {
	store     Store
	clocks    ClockStore
	host      Host
	processes HostProcesses
	files     HostFiles
	ports     HostPorts
	log       *slog.Logger

	snapshots *Snapshots
	activity  *activity
	traffic   *Traffic
	changes   changes
	hostInfo  hostInfoCache
	// hostGoes is set when the host's going away is no news.
	hostGoes atomic.Bool
	// rearm wakes the clocks when a sandbox came that may end before what they wait for.
	rearm chan struct{}

	claims claims
}

// New returns the service of sandboxes.
func New(cfg Config) *Service {
	s := &Service{
		clocks:    cfg.Clocks,
		host:      cfg.Host,
		processes: cfg.Processes,
		files:     cfg.Files,
		ports:     cfg.Ports,
		log:       cfg.Log,
		activity:  newActivity(),
		rearm:     make(chan struct{}, 1),
	}
	s.store = tellingStore{cfg.Store, &s.changes}
	s.traffic = &Traffic{core: s}
	s.snapshots = &Snapshots{
		core: s, store: cfg.SnapshotStore, host: cfg.Snapshots, warm: cfg.Warm, warming: make(chan struct{}, 1),
		retention: cfg.Retention, made: make(chan struct{}, 1),
	}
	return s
}

// Processes returns the service of commands in sandboxes.
func (s *Service) Processes() *Processes {
	return &Processes{core: s, host: s.processes, log: s.log}
}

// Snapshots returns the service of snapshots, templates and copies.
func (s *Service) Snapshots() *Snapshots { return s.snapshots }

// Files returns the service of files in sandboxes.
func (s *Service) Files() *Files { return &Files{core: s, host: s.files} }

// Run follows the host's news, pauses and ends sandboxes whose time has come and writes activity
// down, until ctx ends. It returns an error only if it could not write at the end.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.watch(ctx); return nil })
	g.Go(func() error { s.runClocks(ctx); return nil })
	g.Go(func() error { s.snapshots.runRetention(ctx); return nil })
	g.Go(func() error { return s.activity.flushUntilDone(ctx, s.clocks, s.log) })
	return g.Wait()
}

// ExpectHostGone says that the host is about to stop for good. Its news are followed to
// their end, so that the end of each sandbox is still written down, and then no more.
func (s *Service) ExpectHostGone() { s.hostGoes.Store(true) }

// Ready reports whether the host can be reached.
func (s *Service) Ready(ctx context.Context) error {
	_, err := s.host.Describe(ctx)
	return err
}

// cleanupTime bounds what is done after the request that caused it has gone.
const cleanupTime = 60 * time.Second

// detached is a context that survives the end of ctx, for work that must not be left
// half done.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}

// requireRunning returns the error of an action that only a running sandbox can do.
func (s *Service) requireRunning(ctx context.Context, id string) error {
	sb, err := s.store.Get(ctx, id)
	if err != nil {
		return err
	}
	if sb.Status == Running {
		return nil
	}
	return sb.refuse("only a running sandbox can do this")
}

// refuse is the error of an action that the sandbox's status does not allow; rule says
// what it would take.
func (s *Sandbox) refuse(rule string) error {
	why := ""
	if s.Reason != "" {
		why = " (" + s.Reason + ")"
	}
	if s.Status == Paused {
		rule += "; resume it first"
	}
	return fault.New(fault.InvalidState, "sandbox %q is %s%s; %s", s.ID, s.Status, why, rule)
}

// use begins an action inside a running sandbox; what that means for the sandbox's clocks
// says its kind. It is over when the returned function is called.
func (s *Service) use(ctx context.Context, id string, kind use) (done func(), err error) {
	if err := s.requireRunning(ctx, id); err != nil {
		return nil, err
	}
	done, ok := s.activity.begin(id, kind)
	if !ok {
		return nil, fault.New(fault.InvalidState, "sandbox %q is being paused or stopped right now", id)
	}
	return done, nil
}

// now is the time as every part of Wrenn keeps it: UTC in microseconds, so that what is
// answered at once equals what is read back from any database.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
