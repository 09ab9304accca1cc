package sandbox

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// memSnapshots is a SnapshotStore that keeps rows as the database does. The zero value is
// ready, and it is safe for concurrent use.
type memSnapshots struct {
	mu   sync.Mutex
	rows map[string]Snapshot
}

func (m *memSnapshots) Insert(_ context.Context, s Snapshot) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rows {
		if r.Name == s.Name {
			return fault.New(fault.Conflict, "there is a snapshot %q already", s.Name)
		}
	}
	m.put(s)
	return nil
}

// put is for who holds the lock.
func (m *memSnapshots) put(s Snapshot) {
	if m.rows == nil {
		m.rows = make(map[string]Snapshot)
	}
	m.rows[s.ID] = s
}

func (m *memSnapshots) List(context.Context) ([]Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.rows), func(a, b Snapshot) int { return b.CreatedAt.Compare(a.CreatedAt) }), nil
}

func (m *memSnapshots) Find(_ context.Context, nameOrID string) (Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rows {
		if (r.ID == nameOrID || r.Name == nameOrID) && r.Status.Listed() {
			return r, nil
		}
	}
	return Snapshot{}, fault.New(fault.NotFound, "there is no snapshot %q", nameOrID)
}

func (m *memSnapshots) Promote(_ context.Context, s Snapshot, name string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rows[s.ID].Status != SnapshotCreating {
		return false, nil
	}
	for id, r := range m.rows {
		if r.Name == name && id != s.ID {
			r.Name, r.Status = r.ID, SnapshotDeleting
			m.rows[id] = r
		}
	}
	s.Name, s.Status = name, SnapshotReady
	m.rows[s.ID] = s
	return true, nil
}

func (m *memSnapshots) Retire(_ context.Context, id string) error {
	m.change(id, func(s *Snapshot) { s.Name, s.Status = s.ID, SnapshotDeleting })
	return nil
}

func (m *memSnapshots) SetStatus(_ context.Context, id string, to, from SnapshotStatus) error {
	m.change(id, func(s *Snapshot) {
		if s.Status == from {
			s.Status = to
		}
	})
	return nil
}

func (m *memSnapshots) change(id string, how func(*Snapshot)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.rows[id]; ok {
		how(&s)
		m.rows[id] = s
	}
}

func (m *memSnapshots) Delete(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rows, id)
	return nil
}

// row is the snapshot with id, with an empty id when there is none.
func (m *memSnapshots) row(id string) Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rows[id]
}

// fakeSnapshots is the snapshots of a fakeHost. Hooks, when set, come first.
type fakeSnapshots struct {
	*fakeHost
	onCreateSnapshot func(id string) error
	onFork           func(copies []string) error

	smu  sync.Mutex
	kept map[string]HostSnapshot
	warm map[string]int
}

func (h *fakeSnapshots) Fork(ctx context.Context, id string, copies []string) ([]HostSandbox, error) {
	if h.onFork != nil {
		if err := h.onFork(copies); err != nil {
			return nil, err
		}
	}
	if _, err := h.Get(ctx, id); err != nil {
		return nil, err
	}
	made := make([]HostSandbox, len(copies))
	for i, c := range copies {
		made[i] = HostSandbox{ID: c, Status: Running, HostIP: "10.0.0.5", GuestIP: "10.0.0.6", StartedAt: now()}
		h.set(made[i])
	}
	return made, nil
}

func (h *fakeSnapshots) Create(_ context.Context, sandboxID, snapshotID string) (HostSnapshot, error) {
	if h.onCreateSnapshot != nil {
		if err := h.onCreateSnapshot(snapshotID); err != nil {
			return HostSnapshot{}, err
		}
	}
	s := HostSnapshot{
		ID: snapshotID, SandboxID: sandboxID, Resources: Resources{VCPUs: 2, MemoryMB: 1024, DiskMB: 2048},
		SizeBytes: 99, Stopped: 5 * time.Millisecond, CreatedAt: now(), User: "u",
	}
	h.keep(s)
	return s, nil
}

func (h *fakeSnapshots) keep(s HostSnapshot) {
	h.smu.Lock()
	defer h.smu.Unlock()
	if h.kept == nil {
		h.kept = make(map[string]HostSnapshot)
	}
	h.kept[s.ID] = s
}

func (h *fakeSnapshots) List(context.Context) ([]HostSnapshot, error) {
	h.smu.Lock()
	defer h.smu.Unlock()
	return slices.Collect(maps.Values(h.kept)), nil
}

func (h *fakeSnapshots) Delete(_ context.Context, id string) error {
	h.smu.Lock()
	defer h.smu.Unlock()
	if _, ok := h.kept[id]; !ok {
		return fault.New(fault.NotFound, "there is no snapshot %q on this host", id)
	}
	delete(h.kept, id)
	return nil
}

func (h *fakeSnapshots) hasSnapshot(id string) bool {
	h.smu.Lock()
	defer h.smu.Unlock()
	_, ok := h.kept[id]
	return ok
}

func (h *fakeSnapshots) SetWarm(_ context.Context, counts map[string]int) error {
	h.smu.Lock()
	defer h.smu.Unlock()
	h.warm = counts
	return nil
}

func (h *fakeSnapshots) warmed() map[string]int {
	h.smu.Lock()
	defer h.smu.Unlock()
	return maps.Clone(h.warm)
}

func (h *fakeSnapshots) Metrics(ctx context.Context, id string, _ time.Duration) ([]Point, error) {
	if _, err := h.Get(ctx, id); err != nil {
		return nil, err
	}
	return []Point{{CPUPct: 50}}, nil
}
