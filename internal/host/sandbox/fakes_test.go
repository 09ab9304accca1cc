package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// machine is a host of fakes that keep state: what is taken and not given back shows.
type machine struct {
	mu      sync.Mutex
	slots   map[int]bool // false: parked
	leases  map[int]string
	held    map[int]bool
	frozen  map[string]bool
	running map[string]*fakeGuest
	ends    map[string]chan runtime.Exit
	inits   map[string]guestclient.Init

	// failures by the name of the step
	fail map[string]error
	// hold blocks a start until it is closed or its context ends.
	hold chan struct{}
}

func newMachine() *machine {
	return &machine{
		slots: map[int]bool{}, leases: map[int]string{}, held: map[int]bool{}, frozen: map[string]bool{}, running: map[string]*fakeGuest{}, ends: map[string]chan runtime.Exit{},
		inits: map[string]guestclient.Init{}, fail: map[string]error{},
	}
}

func (m *machine) taken() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var slots []int
	for i, used := range m.slots {
		if used {
			slots = append(slots, i)
		}
	}
	slices.Sort(slots)
	return fmt.Sprintf("slots %v, running %v", slots, slices.Sorted(maps.Keys(m.running)))
}

const nothingTaken = "slots [], running []"

func (m *machine) failure(step string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fail[step]
}

func (m *machine) setFailure(step string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail[step] = err
}

type fakeNetwork struct{ *machine }

// Acquire gives slot n the loopback address 127.113.0.n, so that a guest can listen there.
func (n fakeNetwork) Acquire(context.Context) (network.Slot, error) {
	if err := n.failure("acquire"); err != nil {
		return network.Slot{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	i := 1
	for _, taken := n.slots[i]; taken; _, taken = n.slots[i] {
		i++
	}
	s := fakeSlot(i)
	s.Lease = randomName()
	n.slots[i], n.leases[i] = true, s.Lease
	return s, nil
}

func fakeSlot(i int) network.Slot {
	return network.Slot{
		Index: i, Namespace: fmt.Sprintf("/run/netns/fake-%d", i), Link: fmt.Sprintf("fake%d", i), Gateway: netip.MustParseAddr("127.113.1.1"),
		Guest: netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 113, 0, byte(i)}), 30),
	}
}

func (n fakeNetwork) Release(_ context.Context, s network.Slot) error {
	if err := n.failure("release"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leases[s.Index] == s.Lease { // else it is another's
		delete(n.slots, s.Index)
		delete(n.held, s.Index)
	}
	return nil
}

func (n fakeNetwork) Park(_ context.Context, s network.Slot) error {
	if err := n.failure("park"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, there := n.slots[s.Index]; !there || n.leases[s.Index] != s.Lease {
		return fault.New(fault.NotFound, "slot %d no longer exists", s.Index)
	}
	n.slots[s.Index] = false
	delete(n.held, s.Index)
	return nil
}

func (n fakeNetwork) Unpark(ctx context.Context, s network.Slot) (network.Slot, error) {
	if err := n.failure("unpark"); err != nil {
		return network.Slot{}, err
	}
	n.mu.Lock()
	if used, parked := n.slots[s.Index]; parked && !used && n.leases[s.Index] == s.Lease {
		n.slots[s.Index], n.held[s.Index] = true, true
		n.mu.Unlock()
		return s, nil
	}
	n.mu.Unlock()
	s, err := n.Acquire(ctx)
	return s, errors.Join(err, n.Hold(ctx, s))
}

func (n fakeNetwork) Adopt(_ context.Context, s network.Slot) error {
	if err := n.failure("adopt"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.slots[s.Index] {
		return fault.New(fault.NotFound, "slot %d no longer exists", s.Index)
	}
	return nil
}

func (n fakeNetwork) Hold(_ context.Context, s network.Slot) error {
	if err := n.failure("hold"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[s.Index] = true
	return nil
}

func (n fakeNetwork) Unhold(_ context.Context, s network.Slot) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.held, s.Index)
	return nil
}

func (n fakeNetwork) SetRate(context.Context, network.Slot, int64, int64) error { return nil }

func (n fakeNetwork) Passed(network.Slot) (up, down uint64, err error) { return 0, 0, nil }

func (n fakeNetwork) Sweep(_ context.Context, keep []int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.slots {
		if !slices.Contains(keep, i) {
			delete(n.slots, i)
		}
	}
	return nil
}

type fakeRuntime struct {
	*machine
	t *testing.T
}

func (fakeRuntime) Name() string { return "fake" }

func (r fakeRuntime) Start(ctx context.Context, spec runtime.Spec) error {
	if err := r.failure("start"); err != nil {
		return err
	}
	r.mu.Lock()
	hold := r.hold
	r.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if spec.Checkpoint != "" {
		if err := spec.BeforeRestore(ctx); err != nil {
			return err
		}
		if _, err := os.ReadFile(filepath.Join(spec.Checkpoint, "memory")); err != nil {
			return err
		}
	}
	var index byte
	if _, err := fmt.Sscanf(spec.Namespace, "/run/netns/fake-%d", &index); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends[spec.ID] = make(chan runtime.Exit, 1)
	guest, err := r.startGuest(index)
	if err != nil {
		return err
	}
	r.running[spec.ID] = guest
	return nil
}

func (r fakeRuntime) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	r.mu.Lock()
	end := r.ends[id]
	r.mu.Unlock()
	if end == nil {
		return runtime.Exit{}, nil
	}
	select {
	case exit := <-end:
		end <- exit // for whoever waits too
		return exit, nil
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

// end makes a sandbox end by itself.
func (m *machine) end(id string, exit runtime.Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends[id] <- exit
}

func (r fakeRuntime) Destroy(_ context.Context, id string) error {
	if err := r.failure("destroy"); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if guest := r.running[id]; guest != nil {
		guest.close()
		delete(r.running, id)
		delete(r.frozen, id)
	}
	if end := r.ends[id]; end != nil {
		select {
		case end <- runtime.Exit{}:
		default:
		}
	}
	return nil
}

func (r fakeRuntime) Checkpoint(_ context.Context, id, dir string) error {
	if err := r.failure("checkpoint"); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[id] == nil {
		return fmt.Errorf("%s does not run", id)
	}
	r.frozen[id] = true
	return os.WriteFile(filepath.Join(dir, "memory"), []byte("of "+id), 0o600)
}

func (r fakeRuntime) Answers(context.Context, string) error { return r.failure("answer") }

func (r fakeRuntime) Thaw(_ context.Context, id string) error {
	if err := r.failure("thaw"); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.frozen, id)
	return nil
}

func (r fakeRuntime) Usage(_ context.Context, id string) (runtime.Usage, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[id] == nil {
		return runtime.Usage{}, fault.New(fault.NotFound, "%s does not run", id)
	}
	return runtime.Usage{CPU: time.Second, MemoryBytes: 1 << 20, DiskBytes: 1 << 10}, nil
}

func (r fakeRuntime) List(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.running)), nil
}

// fakeGuest is what of envd a create needs: health and init.
type fakeGuest struct {
	server   *http.Server
	listener net.Listener
}

func (g *fakeGuest) close() {
	if g.server != nil {
		_ = g.server.Close()
		_ = g.listener.Close() // in case it was not yet the server's
	}
}

func (r fakeRuntime) startGuest(index byte) (*fakeGuest, error) {
	if _, mute := r.fail["guest"]; mute {
		return &fakeGuest{}, nil // boots and never answers
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.113.0.%d:%d", index, guestclient.Port))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("POST /snapshot/prepare", func(w http.ResponseWriter, _ *http.Request) {
		if r.failure("prepare") != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /init", func(w http.ResponseWriter, req *http.Request) {
		var in guestclient.Init
		err := json.NewDecoder(req.Body).Decode(&in)
		if err = errors.Join(err, r.failure("init")); err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		r.mu.Lock()
		r.inits[in.SandboxID] = in
		r.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	g := &fakeGuest{server: &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}, listener: listener}
	go func() { _ = g.server.Serve(listener) }()
	return g, nil
}

type fakeImages struct{}

func (fakeImages) Lookup(name string) (image.Image, error) {
	if name != "base" {
		return image.Image{}, fault.New(fault.NotFound, "template %q does not exist", name)
	}
	return image.Image{Name: "base", Path: "/images/base.erofs", DefaultUser: "wrenn-user"}, nil
}

func (fakeImages) List() ([]image.Image, error) {
	return []image.Image{{Name: "base"}}, nil
}

// fakeDaemon makes a directory with a guest daemon.
func fakeDaemon(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, guestProgram), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// config is that of a Service over the machine.
func (m *machine) config(t *testing.T, dir string) Config {
	t.Helper()
	snapshots, err := snapshot.Open(filepath.Join(dir, "snapshots"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Dir: filepath.Join(dir, "sandboxes"), MeterDir: filepath.Join(dir, "metrics"), EnvdDir: fakeDaemon(t),
		Images: fakeImages{}, Network: fakeNetwork{m}, Runtime: fakeRuntime{m, t}, Snapshots: snapshots,
		Max: Resources{VCPUs: 4, MemoryMB: 4096, DiskMB: 10240}, Log: slog.New(slog.DiscardHandler),
	}
}

// open returns a Service over the machine; what it left is looked for when the test ends.
func (m *machine) open(t *testing.T, dir string) *Service {
	t.Helper()
	return m.openWith(t, m.config(t, dir))
}

func (m *machine) openWith(t *testing.T, cfg Config) *Service {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.mu.Lock()
		clear(m.fail)
		m.mu.Unlock()
		if err := s.Close(context.Background(), StopKill); err != nil {
			t.Error(err)
		}
		for _, id := range s.ids(Paused, Failed) {
			if err := s.Destroy(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
		if taken := m.taken(); taken != nothingTaken {
			t.Errorf("left after Close: %s", taken)
		}
		if ids, err := s.records.ids(); err != nil || len(ids) > 0 {
			t.Errorf("records left after Close: %v, %v", ids, err)
		}
	})
	return s
}

// crash ends a Service as a kill of its process would: nothing is told, nothing given back.
func (s *Service) crash() {
	s.end()
	s.watchers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	clear(s.entries) // its process is gone
}
