// Package process runs the commands of a sandbox: it starts them as some user, carries
// their output to any number of subscribers and their input to them, ends them, and
// collects whatever ends.
//
// A process belongs to nobody: no client's going away ends it, only its own end, a signal
// or its time limit. The package must not know who asks for it or over which protocol;
// users, environment and working directory come to it decided.
package process

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Config configures a Manager.
type Config struct {
	Logger *slog.Logger
	// ReapOrphans collects children that the Manager did not start, as PID 1 and a
	// subreaper must.
	ReapOrphans bool
	// MaxProcesses bounds how many processes and threads there may be at once, counting
	// everything that started processes start themselves; 0 sets no bound.
	MaxProcesses int
	// CgroupMount is where a hierarchy of cgroups is mounted for that, and CgroupName the
	// name of the cgroup made in it.
	CgroupMount, CgroupName string
}

// Manager starts processes and finds them again. It is safe for concurrent use, and lives
// from NewManager to Close.
type Manager struct {
	logger  *slog.Logger
	limit   int
	reaper  *reaper
	spawner *spawner
	wg      sync.WaitGroup
	stop    chan struct{} // closed by Close
	// gathering is held, one each, by the flows of output that gather.
	gathering *semaphore.Weighted

	mu     sync.Mutex
	closed bool
	live   map[int]*Process
	// ended are the processes that ended lately, the latest last, and endedKept the memory
	// of their kept output, in bytes.
	ended     []*ended
	endedKept int
	// lingering are pipes that outlive their process in the hands of its descendants.
	lingering map[*os.File]struct{}
}

// NewManager returns a running Manager. Where the limit on processes cannot be set up, it
// says so in the log and goes on without one: a sandbox without it is worth more than none.
func NewManager(cfg Config) *Manager {
	m := &Manager{
		logger:    cfg.Logger,
		reaper:    newReaper(cfg.ReapOrphans, cfg.Logger),
		spawner:   &spawner{},
		stop:      make(chan struct{}),
		gathering: semaphore.NewWeighted(maxGathering),
		live:      make(map[int]*Process),
		lingering: make(map[*os.File]struct{}),
	}
	if cfg.MaxProcesses <= 0 {
		return m
	}
	limited, err := newLimitedSpawner(cfg.CgroupMount, cfg.CgroupName, cfg.MaxProcesses)
	if err != nil {
		cfg.Logger.Warn("the number of processes is not limited", "err", err)
		return m
	}
	m.spawner, m.limit = limited, cfg.MaxProcesses
	return m
}

// Selector names a process by its pid or, when Tag is set, by its tag.
type Selector struct {
	PID int
	Tag *string
}

// Find returns a running process. Of several with one tag it is the newest.
func (m *Manager) Find(sel Selector) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sel.found(m.findLive(sel))
}

// FindRecent is Find that also knows the processes which ended lately. One that is running
// comes before all that have ended.
func (m *Manager) FindRecent(sel Selector) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.findLive(sel); p != nil {
		return p, nil
	}
	for _, e := range slices.Backward(m.ended) {
		if sel.names(e.Process) {
			return e.Process, nil
		}
	}
	return sel.found(nil)
}

// findLive returns the newest running process that sel names, or nil.
func (m *Manager) findLive(sel Selector) *Process {
	if sel.Tag == nil {
		return m.live[sel.PID]
	}
	var newest *Process
	for _, p := range m.live {
		if sel.names(p) && (newest == nil || p.started.After(newest.started)) {
			newest = p
		}
	}
	return newest
}

func (sel Selector) names(p *Process) bool {
	if sel.Tag == nil {
		return p.pid == sel.PID
	}
	return p.spec.Tag != nil && *p.spec.Tag == *sel.Tag
}

// found returns p, or that there is no such process.
func (sel Selector) found(p *Process) (*Process, error) {
	switch {
	case p != nil:
		return p, nil
	case sel.Tag == nil:
		return nil, fault.New(fault.NotFound, "process with pid %d not found", sel.PID)
	}
	return nil, fault.New(fault.NotFound, "process with tag '%s' not found", *sel.Tag)
}

// List returns the running processes, oldest first.
func (m *Manager) List() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*Process, 0, len(m.live))
	for _, p := range m.live {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *Process) int { return a.started.Compare(b.started) })
	return list
}

// closeWait bounds how long Close waits for killed processes to end.
const closeWait = 5 * time.Second

// Close kills every process that is left and waits until all is given back. Closing again
// does nothing.
func (m *Manager) Close() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.closed = true
	close(m.stop)
	left := make([]*Process, 0, len(m.live))
	for _, p := range m.live {
		left = append(left, p)
	}
	m.mu.Unlock()
	for _, p := range left {
		_ = p.Signal(unix.SIGKILL) // it may have ended by itself, which is as good
	}
	m.closeLingering()

	done := make(chan struct{})
	go func() {
		m.wg.Wait()
		close(done)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	select {
	case <-done:
	case <-ctx.Done():
		m.logger.Warn("some processes did not end in time", "waited", closeWait)
	}
	m.spawner.close()
	m.reaper.close()
}

// add makes p findable. A process that comes while the Manager is being closed is killed:
// Close has not seen it.
func (m *Manager) add(p *Process) {
	m.mu.Lock()
	m.live[p.pid] = p
	closed := m.closed
	m.mu.Unlock()
	if closed {
		_ = p.Signal(unix.SIGKILL) // it may have ended by itself, which is as good
	}
}
