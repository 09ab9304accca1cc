package sandbox

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/child"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/gvisor"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

// world is a real host in a directory of its own: it can be opened again and again, also
// after what opened it first was killed.
type world struct {
	dir    string // what lasts
	runDir string // what ends with the machine's boot
	// instance tells its part of the machine's network from others'.
	instance string
	bin      string
	images   string
}

// newWorld makes a world that is looked through for leftovers when the test ends.
func newWorld(t testing.TB) world {
	t.Helper()
	// The path of a control socket is limited to 107 bytes; a test's directory is not.
	runDir, err := os.MkdirTemp("/run", "wrenn-test-")
	if err != nil {
		t.Fatal(err)
	}
	w := world{
		dir: t.TempDir(), runDir: runDir, instance: fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(runDir))),
		bin: filepath.Dir(testenv.Bin(t, "runsc")), images: testenv.Images(t),
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(runDir); err != nil {
			t.Error(err)
		}
	})
	reaping, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	if err := child.Reap(reaping); err != nil {
		t.Fatal(err)
	}
	return w
}

// host is an opened world.
type host struct {
	*Service
	network *network.Network
	runtime *gvisor.Driver
	log     *os.File
}

// open opens the host. What is in cfg stays; the parts are filled in.
func (w world) open(ctx context.Context, cfg Config) (*host, error) {
	log, err := os.OpenFile(filepath.Join(w.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	h := &host{log: log}
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	images, err := image.Open(w.images)
	if err != nil {
		return nil, err
	}
	if _, err := images.EnsureBase(ctx, func(image.Progress) {}); err != nil {
		return nil, err
	}
	h.network, err = network.Open(ctx, network.Config{Instance: w.instance, DataDir: w.dir, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	h.runtime, err = gvisor.New(gvisor.Config{
		Binary: filepath.Join(w.bin, "runsc"), ProgramsDir: filepath.Join(w.dir, "programs"), RunDir: w.runDir,
		OverlayDir: filepath.Join(w.dir, "overlays"), CgroupParent: filepath.Base(w.runDir), Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	if cfg.EnvdDir, err = w.installEnvd(); err != nil {
		return nil, err
	}
	if cfg.Snapshots, err = snapshot.Open(filepath.Join(w.dir, "snapshots"), cfg.Log); err != nil {
		return nil, err
	}
	cfg.Dir, cfg.MeterDir = filepath.Join(w.dir, "sandboxes"), filepath.Join(w.dir, "metrics")
	cfg.Images, cfg.Network, cfg.Runtime = images, h.network, h.runtime
	cfg.Max = Resources{VCPUs: 4, MemoryMB: 4096, DiskMB: 10240}
	h.Service, err = Open(ctx, cfg)
	return h, err
}

func (w world) installEnvd() (string, error) {
	dir := filepath.Join(w.dir, "guest")
	program, err := os.ReadFile(filepath.Join(w.bin, "envd"))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "envd")
	if _, err := os.Stat(path); err == nil {
		return dir, nil
	}
	return dir, errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(path, program, 0o755))
}

// reboot removes what ends with the machine's boot. Nothing runs.
func (w world) reboot(t testing.TB) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(w.runDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(files, w.leases(t)...) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

// shut closes a host and keeps what runs.
func (h *host) shut(ctx context.Context) error {
	return errors.Join(h.Close(ctx, StopKeep), h.network.Close(), h.runtime.Close(), h.log.Close())
}

// mustOpen opens the host for a test, which ends all that is in it and looks for leftovers.
func (w world) mustOpen(t testing.TB) *host {
	t.Helper()
	h, err := w.open(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// end destroys all that a host has and looks for what is left of it on the machine.
func (w world) end(t testing.TB, h *host) {
	t.Helper()
	ctx := context.Background()
	for _, id := range h.ids(statuses...) {
		if err := h.Destroy(ctx, id); err != nil {
			t.Error(err)
		}
	}
	for _, snap := range h.Snapshots().List() {
		if err := h.Snapshots().Delete(ctx, snap.ID); err != nil {
			t.Error(err)
		}
	}
	if err := h.shut(ctx); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"sandboxes/*", "snapshots/*", "snapshots/.*", "metrics/*"} {
		if left, _ := filepath.Glob(filepath.Join(w.dir, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	if left := w.leases(t); len(left) > 0 {
		t.Errorf("slots left: %v", left)
	}
	if left := w.processes(t); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	if t.Failed() {
		if text, err := os.ReadFile(filepath.Join(w.dir, "log")); err == nil {
			t.Logf("the host's log:\n%s", text)
		}
	}
}

// leases returns the network slots of this world.
func (w world) leases(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(network.DefaultLeaseDir, "[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(path string) bool {
		data, err := os.ReadFile(path)
		return err != nil || !strings.Contains(string(data), w.instance)
	})
}

// processes returns the command lines of the runtime's processes of this world.
func (w world) processes(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), "--root="+w.runDir) {
			found = append(found, strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

// small is a request for a sandbox of the least size.
func small(id string) CreateRequest {
	return CreateRequest{ID: id, Template: "base", Resources: Resources{VCPUs: 1, MemoryMB: 256, DiskMB: 512}, Env: map[string]string{"COLOUR": "green"}}
}

// answer runs a shell script in a sandbox and returns what it prints.
func (h *host) answer(ctx context.Context, id, script string) (string, error) {
	guest, err := h.Guest(id)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out strings.Builder
	var end guestclient.Ended
	err = guest.Start(ctx, guestclient.Command{Cmd: "/bin/bash", Args: []string{"-c", script}, User: "root"}, func(e guestclient.Event) error {
		switch e := e.(type) {
		case guestclient.Output:
			out.Write(e.Data)
		case guestclient.Ended:
			end = e
		}
		return nil
	})
	if err == nil && end.ExitCode != 0 {
		err = fmt.Errorf("%q ended with %+v: %s", script, end, out.String())
	}
	return strings.TrimSpace(out.String()), err
}

func (h *host) mustAnswer(t testing.TB, id, script string) string {
	t.Helper()
	out, err := h.answer(t.Context(), id, script)
	if err != nil {
		t.Fatalf("%s: %q: %v", id, script, err)
	}
	return out
}

// counting starts a program in a sandbox that counts in its memory and says how far it is
// through a file that it rewrites; the count never goes back while the sandbox is one.
func (h *host) counting(ctx context.Context, id string) error {
	guest, err := h.Guest(id)
	if err != nil {
		return err
	}
	errStarted := errors.New("started")
	err = guest.Start(ctx, guestclient.Command{
		Cmd: "/bin/bash", Args: []string{"-c", `n=0; while :; do n=$((n+1)); echo $n >/root/next; mv /root/next /root/count; sleep 0.02; done`}, User: "root", Tag: "counter",
	}, func(e guestclient.Event) error {
		if _, ok := e.(guestclient.Started); ok {
			return errStarted
		}
		return nil
	})
	if errors.Is(err, errStarted) {
		return nil
	}
	return errors.Join(err, errors.New("the counter has not started"))
}

// count returns how far the counter of a sandbox is, once it goes on.
func (h *host) count(t testing.TB, id string) int {
	t.Helper()
	out := h.mustAnswer(t, id, `for i in $(seq 200); do a=$(cat /root/count 2>/dev/null) && b=$(sleep 0.03; cat /root/count) && [ "$a" != "$b" ] && echo $b && exit; done; echo the counter stands still; exit 1`)
	n := 0
	if _, err := fmt.Sscan(out, &n); err != nil {
		t.Fatalf("the counter says %q", out)
	}
	return n
}

const (
	idA = "sba0000000000000000000"
	idB = "sbb0000000000000000000"
	idC = "sbc0000000000000000000"
)

func TestPauseAndResumeForReal(t *testing.T) {
	w := newWorld(t)
	h := w.mustOpen(t)
	defer func() { w.end(t, h) }()
	if _, err := h.Create(t.Context(), small(idA)); err != nil {
		t.Fatal(err)
	}
	if err := h.counting(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	before := 0
	for round := range 3 {
		now := h.count(t, idA)
		if now < before {
			t.Fatalf("round %d: the counter went from %d to %d", round, before, now)
		}
		before = now
		h.mustAnswer(t, idA, fmt.Sprintf("echo %d >/root/round", round))
		began := time.Now()
		sb, err := h.Pause(t.Context(), idA)
		if err != nil {
			t.Fatal(err)
		}
		if sb.Status != Paused || sb.PausedAt.IsZero() || sb.SnapshotBytes == 0 {
			t.Errorf("paused %+v", sb)
		}
		paused := time.Since(began)
		if _, err := h.Guest(idA); !fault.Is(err, fault.InvalidState) {
			t.Errorf("a paused sandbox can be used: %v", err)
		}
		if round >= 1 { // a host that is stopped and started meanwhile
			if err := h.shut(t.Context()); err != nil {
				t.Fatal(err)
			}
			if round == 2 {
				w.reboot(t)
			}
			h = w.mustOpen(t)
		}
		began = time.Now()
		if sb, err = h.Resume(t.Context(), idA, 0); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: paused in %v, %d KiB; resumed in %v", round, paused, sb.SnapshotBytes>>10, time.Since(began))
		if got := h.mustAnswer(t, idA, "cat /root/round; echo $COLOUR; hostname"); got != fmt.Sprintf("%d\ngreen\n%s", round, idA) {
			t.Errorf("round %d: %q", round, got)
		}
	}
	if n := len(h.cfg.Snapshots.List()); n != 1 {
		t.Errorf("%d snapshots of one sandbox", n)
	}
}
