package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// memStore is a Store that keeps rows as the database does. It is safe for concurrent
// use.
type memStore struct {
	mu   sync.Mutex
	rows map[string]Sandbox
}

func (m *memStore) Insert(_ context.Context, s Sandbox) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.rows[s.ID]; ok {
		return errors.New("the id exists")
	}
	m.rows[s.ID] = s
	return nil
}

func (m *memStore) Get(ctx context.Context, id string) (Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return Sandbox{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.rows[id]
	if !ok {
		return Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	return s, nil
}

func (m *memStore) List(_ context.Context, f Filter) ([]Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Sandbox
	for _, s := range m.rows {
		if f.Status != "" && s.Status != f.Status || f.Timed && s.Timeout == 0 && s.Deadline == 0 {
			continue
		}
		if f.After.ID != "" && (s.CreatedAt.After(f.After.CreatedAt) || s.CreatedAt.Equal(f.After.CreatedAt) && s.ID <= f.After.ID) {
			continue
		}
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b Sandbox) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	if f.Limit > 0 && len(found) > f.Limit {
		found = found[:f.Limit]
	}
	return found, nil
}

func (m *memStore) update(ctx context.Context, id string, from []Status, change func(*Sandbox)) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.rows[id]
	if !ok || !slices.Contains(from, s.Status) {
		return false, nil
	}
	change(&s)
	m.rows[id] = s
	return true, nil
}

func (m *memStore) Save(ctx context.Context, sb Sandbox, from ...Status) (bool, error) {
	return m.update(ctx, sb.ID, from, func(s *Sandbox) {
		sb.Timeout, sb.Deadline, sb.OnTimeout, sb.Metadata = s.Timeout, s.Deadline, s.OnTimeout, s.Metadata
		sb.LastActiveAt = later(sb.LastActiveAt, s.LastActiveAt)
		sb.DeadlineFrom = later(sb.DeadlineFrom, s.DeadlineFrom)
		*s = sb
	})
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (m *memStore) SetClocks(ctx context.Context, id string, t Timeouts, at time.Time, from ...Status) (bool, error) {
	return m.update(ctx, id, from, func(s *Sandbox) {
		s.UpdatedAt = at
		if t.Timeout != nil {
			s.Timeout = *t.Timeout
		}
		if t.Deadline != nil {
			s.Deadline, s.DeadlineFrom = *t.Deadline, at
		}
		if t.OnTimeout != "" {
			s.OnTimeout = t.OnTimeout
		}
	})
}

func (m *memStore) SetStatus(ctx context.Context, id string, to Status, reason string, at time.Time, from ...Status) (bool, error) {
	return m.update(ctx, id, from, func(s *Sandbox) { s.Status, s.Reason, s.UpdatedAt = to, reason, at })
}

func (m *memStore) Expire(ctx context.Context, read Sandbox, to Status, reason string, at time.Time) (bool, error) {
	m.mu.Lock()
	changed := !m.rows[read.ID].UpdatedAt.Equal(read.UpdatedAt)
	m.mu.Unlock()
	if changed {
		return false, nil
	}
	return m.SetStatus(ctx, read.ID, to, reason, at, Running)
}

func (m *memStore) Delete(ctx context.Context, id string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.rows[id]
	delete(m.rows, id)
	return ok, nil
}

func (m *memStore) Touch(_ context.Context, active map[string]time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, at := range active {
		if s, ok := m.rows[id]; ok {
			s.LastActiveAt = at
			m.rows[id] = s
		}
	}
	return nil
}

func (m *memStore) put(rows ...Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range rows {
		m.rows[s.ID] = s
	}
}

// row is the sandbox with id, with an empty id when there is none.
func (m *memStore) row(id string) Sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rows[id]
}

func (m *memStore) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rows)
}

// fakeHost is a host with sandboxes that are nothing but names. Hooks, when set, come
// first. It is safe for concurrent use.
type fakeHost struct {
	mu        sync.Mutex
	sandboxes map[string]HostSandbox
	running   map[string][]Process // what runs in each
	destroyed []string
	watchers  []chan HostEvent

	max      Resources
	onCreate func(ctx context.Context, spec Spec) error
	onPause  func(id string) error
	onResume func(id string) error
	onStart  func(cmd Command) (EventStream, error)
	onList   func(id string)
	// onConnect is onStart for a process that runs.
	onConnect func(f Follow) (EventStream, error)
	signals   chan Selector
	inputs    chan string // "" for the end
}

func (h *fakeHost) Describe(context.Context) (HostInfo, error) {
	return HostInfo{ID: "h1", Runtime: "fake", Max: h.max}, nil
}

func (h *fakeHost) Create(ctx context.Context, spec Spec) (HostSandbox, error) {
	if h.onCreate != nil {
		if err := h.onCreate(ctx, spec); err != nil {
			return HostSandbox{}, err
		}
	}
	sb := HostSandbox{ID: spec.ID, Status: Running, HostIP: "10.0.0.1", GuestIP: "10.0.0.2", StartedAt: now()}
	h.set(sb)
	return sb, nil
}

func (h *fakeHost) Get(_ context.Context, id string) (HostSandbox, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sb, ok := h.sandboxes[id]
	if !ok {
		return HostSandbox{}, fault.New(fault.NotFound, "there is no sandbox %q on this host", id)
	}
	return sb, nil
}

func (h *fakeHost) Pause(ctx context.Context, id string) (HostSandbox, error) {
	return h.pass(ctx, id, h.onPause, Pausing, Paused)
}

func (h *fakeHost) Resume(ctx context.Context, id string, _ time.Duration) (HostSandbox, error) {
	return h.pass(ctx, id, h.onResume, Resuming, Running)
}

// pass takes a sandbox through one status to another, with news of both, unless the hook
// says no.
func (h *fakeHost) pass(ctx context.Context, id string, hook func(id string) error, through, to Status) (HostSandbox, error) {
	sb, err := h.Get(ctx, id)
	if err != nil {
		return HostSandbox{}, err
	}
	was := sb
	sb.Status = through
	h.set(sb)
	if hook != nil {
		if err := hook(id); err != nil {
			h.set(was)
			return HostSandbox{}, err
		}
	}
	sb.Status = to
	if to == Paused {
		sb.PausedAt, sb.SnapshotBytes = now(), 77
	} else {
		sb.HostIP, sb.StartedAt = "10.0.0.9", now()
	}
	h.set(sb)
	return sb, nil
}

func (h *fakeHost) Destroy(_ context.Context, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.destroyed = append(h.destroyed, id)
	if _, ok := h.sandboxes[id]; !ok {
		return fault.New(fault.NotFound, "there is no sandbox %q on this host", id)
	}
	delete(h.sandboxes, id)
	return nil
}

// set changes a sandbox and tells the watchers.
func (h *fakeHost) set(sb HostSandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if sb.Status == Stopped {
		delete(h.sandboxes, sb.ID)
	} else {
		h.sandboxes[sb.ID] = sb
	}
	for _, w := range h.watchers {
		w <- HostEvent{Sandbox: sb}
	}
}

// restart ends every watch.
func (h *fakeHost) restart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.watchers {
		close(w)
	}
	h.watchers = nil
}

func (h *fakeHost) Watch(ctx context.Context, each func(HostEvent) error) error {
	h.mu.Lock()
	news := make(chan HostEvent, 64)
	h.watchers = append(h.watchers, news)
	var all []HostEvent
	for _, sb := range h.sandboxes {
		all = append(all, HostEvent{Sandbox: sb})
	}
	h.mu.Unlock()
	for _, ev := range append(all, HostEvent{Synced: true}) {
		if err := each(ev); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, ok := <-news:
			if !ok {
				return fault.New(fault.HostUnavailable, "the host restarts")
			}
			if err := each(ev); err != nil {
				return err
			}
		}
	}
}

func (h *fakeHost) has(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.sandboxes[id]
	return ok
}

func (h *fakeHost) setRunning(id string, p ...Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[id] = p
}

// fakeHostProcesses is the processes of a fakeHost.
type fakeHostProcesses struct{ *fakeHost }

func (h fakeHostProcesses) Start(_ context.Context, _ string, cmd Command) (Started, EventStream, error) {
	events, err := h.onStart(cmd)
	return Started{PID: 7}, events, err
}

func (h fakeHostProcesses) Connect(_ context.Context, _ string, f Follow) (Started, EventStream, error) {
	events, err := h.onConnect(f)
	return Started{PID: 8, ReplayBytes: 9}, events, err
}

func (h fakeHostProcesses) List(_ context.Context, id string) ([]Process, error) {
	if h.onList != nil {
		h.onList(id)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.running[id], nil
}

func (h fakeHostProcesses) SendInput(_ context.Context, _ string, _ Selector, in Input) error {
	if in.Terminal {
		h.inputs <- "terminal:" + string(in.Data)
		return nil
	}
	h.inputs <- string(in.Data)
	return nil
}

func (h fakeHostProcesses) Resize(_ context.Context, _ string, _ Selector, size TerminalSize) error {
	h.inputs <- fmt.Sprintf("size:%dx%d", size.Cols, size.Rows)
	return nil
}

func (h fakeHostProcesses) CloseStdin(context.Context, string, Selector) error {
	h.inputs <- ""
	return nil
}

func (h fakeHostProcesses) Signal(_ context.Context, _ string, p Selector, _ Signal) error {
	h.signals <- p
	return nil
}

// fakeFiles has one file, which is what Read returns.
type fakeFiles struct {
	HostFiles
	content io.ReadCloser
}

func (f fakeFiles) Read(context.Context, string, string, string) (Contents, error) {
	return Contents{ReadCloser: f.content, Size: -1}, nil
}

// newTest is a service over an empty store and host. Run is up to the test.
func newTest(t *testing.T) (*Service, *memStore, *fakeHost) {
	t.Helper()
	store := &memStore{rows: make(map[string]Sandbox)}
	host := &fakeHost{
		sandboxes: make(map[string]HostSandbox), running: make(map[string][]Process),
		max:     Resources{VCPUs: 2, MemoryMB: 4096, DiskMB: 20480},
		signals: make(chan Selector, 4), inputs: make(chan string, 64),
	}
	s := New(Config{
		Store: store, Clocks: store, SnapshotStore: &memSnapshots{}, Host: host, Snapshots: &fakeSnapshots{fakeHost: host},
		Warm: map[string]int{"warm": 2}, Processes: fakeHostProcesses{host}, Files: fakeFiles{},
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	return s, store, host
}

// run runs s until the test ends.
func run(t *testing.T, s *Service) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
