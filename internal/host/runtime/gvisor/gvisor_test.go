package gvisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/runtimetest"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

// place is where a driver is tested, with all that it needs.
type place struct {
	config Config
	driver *Driver
	slots  *network.Network
	// held are the slots in use, by their namespaces.
	held  map[string]network.Slot
	image string
}

// instances makes names that differ within one test run.
var instances atomic.Uint32

func newPlace(t testing.TB) *place {
	t.Helper()
	// The path of a control socket is limited to 107 bytes; a test's directory is not.
	runDir, err := os.MkdirTemp("/run", "wrenn-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(runDir); err != nil {
			t.Error(err)
		}
	})
	p := &place{held: map[string]network.Slot{}, config: Config{
		Binary: testenv.Bin(t, "runsc"), ProgramsDir: t.TempDir(), RunDir: runDir, OverlayDir: t.TempDir(),
		CgroupParent: filepath.Base(runDir), Log: slog.Default(),
	}}
	p.driver = p.another(t)
	t.Cleanup(func() {
		if err := p.driver.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(runDir, "*")); len(left) > 0 {
			t.Errorf("left in the run directory: %v", left)
		}
	})
	images, err := image.Open(testenv.Images(t))
	if err != nil {
		t.Fatal(err)
	}
	base, err := images.EnsureBase(t.Context(), func(image.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	p.image = base.Path
	instance := fmt.Sprintf("%06x%02x", os.Getpid()&0xffffff, instances.Add(1))
	p.slots, err = network.Open(t.Context(), network.Config{Instance: instance, DataDir: t.TempDir(), Log: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(p.slots.Sweep(context.Background(), nil), p.slots.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// another returns a driver like the one of the place.
func (p *place) another(t testing.TB) *Driver {
	t.Helper()
	driver, err := New(p.config)
	if err != nil {
		t.Fatal(err)
	}
	return driver
}

func (p *place) slot(t testing.TB) network.Slot {
	t.Helper()
	slot, err := p.slots.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.slots.Release(context.Background(), slot); err != nil {
			t.Error(err)
		}
	})
	p.held[slot.Namespace] = slot
	return slot
}

// renew puts back into a namespace what a start has taken.
func (p *place) renew(t testing.TB, namespace string) {
	t.Helper()
	if err := p.slots.Configure(t.Context(), p.held[namespace]); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	p := newPlace(t)
	runtimetest.Run(t, runtimetest.Env{
		Driver: p.driver, RootFS: p.image, EnvdDir: envdDir(t),
		Namespace: func(t *testing.T) (string, netip.Addr) {
			slot := p.slot(t)
			return slot.Namespace, slot.Guest.Addr()
		},
		Renew:     func(t *testing.T, namespace string) { p.renew(t, namespace) },
		Another:   func(t *testing.T) runtimetest.Driver { return p.another(t) },
		Elsewhere: p.checkpointElsewhere,
		Leftovers: p.driver.leftovers,
	})
}

// checkpointVariable holds, as JSON, what a test process is to checkpoint in place of
// running tests.
const checkpointVariable = "WRENN_TEST_CHECKPOINT"

type checkpointOrder struct {
	Config  Config
	ID, Dir string
}

func TestMain(m *testing.M) {
	if order := os.Getenv(checkpointVariable); order != "" {
		if err := obey(order); err != nil {
			fmt.Fprintln(os.Stdout, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func obey(order string) error {
	var o checkpointOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		return err
	}
	o.Config.Log = slog.Default()
	driver, err := New(o.Config)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, "begin")
	return driver.Checkpoint(context.Background(), o.ID, o.Dir)
}

// checkpointElsewhere begins a checkpoint in another process.
func (p *place) checkpointElsewhere(t *testing.T, id, dir string) (kill func()) {
	t.Helper()
	config := p.config
	config.Log = nil
	order, err := json.Marshal(checkpointOrder{config, id, dir})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), checkpointVariable+"="+string(order))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "begin\n" {
		t.Fatalf("the other process says %q (%v)", line, err)
	}
	return func() {
		_ = cmd.Process.Kill() // it may be done
		_ = cmd.Wait()         // it was killed
	}
}

// envdDir returns a directory that holds the guest daemon and nothing else.
func envdDir(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(testenv.Bin(t, "envd"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "envd"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// leftovers looks for an id everywhere the driver and runsc put something.
func (d *Driver) leftovers(t *testing.T, id string) []string {
	t.Helper()
	var left []string
	pids, err := d.runscProcesses(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	if slices.Contains(d.cgroups.children(), id) {
		left = append(left, "cgroup")
	}
	for _, pattern := range []string{
		filepath.Join(d.stateDir(), "*"+id+"*"), d.bundle(id),
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, files...)
	}
	return left
}
