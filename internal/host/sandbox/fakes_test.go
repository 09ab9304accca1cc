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
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// machine is a host of fakes that keep state: what is taken and not given back shows.
type machine struct {
	mu      sync.Mutex
	slots   map[int]bool
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
		slots: map[int]bool{}, running: map[string]*fakeGuest{}, ends: map[string]chan runtime.Exit{},
		inits: map[string]guestclient.Init{}, fail: map[string]error{},
	}
}

func (m *machine) taken() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprintf("slots %v, running %v", slices.Sorted(maps.Keys(m.slots)), slices.Sorted(maps.Keys(m.running)))
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
	for n.slots[i] {
		i++
	}
	n.slots[i] = true
	return network.Slot{
		Index: i, Namespace: fmt.Sprintf("/run/netns/fake-%d", i), Gateway: netip.MustParseAddr("127.113.1.1"),
		Guest: netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 113, 0, byte(i)}), 30),
	}, nil
}

func (n fakeNetwork) Release(_ context.Context, s network.Slot) error {
	if err := n.failure("release"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.slots[s.Index] {
		return fmt.Errorf("slot %d was given back twice", s.Index)
	}
	delete(n.slots, s.Index)
	return nil
}

func (n fakeNetwork) Sweep(context.Context, []int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.slots)
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
	}
	if end := r.ends[id]; end != nil {
		select {
		case end <- runtime.Exit{}:
		default:
		}
	}
	return nil
}

func (r fakeRuntime) List(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.running)), nil
}

// fakeGuest is what of envd a create needs: health and init.
type fakeGuest struct{ server *http.Server }

func (g *fakeGuest) close() {
	if g.server != nil {
		_ = g.server.Close()
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
	g := &fakeGuest{server: &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}}
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

// open returns a Service over the machine; what it left is looked for when the test ends.
func (m *machine) open(t *testing.T, dir string) *Service {
	t.Helper()
	s, err := Open(t.Context(), Config{
		Dir: dir, EnvdDir: t.TempDir(), Images: fakeImages{}, Network: fakeNetwork{m}, Runtime: fakeRuntime{m, t},
		Max: Resources{VCPUs: 4, MemoryMB: 4096, DiskMB: 10240}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.mu.Lock()
		clear(m.fail)
		m.mu.Unlock()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
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
