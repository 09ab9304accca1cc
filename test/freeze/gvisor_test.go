package freeze

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/host/child"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/gvisor"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

const (
	sandboxID  = "sbfreeze"
	mountPoint = "/run/wrenn/bin"
	// sandboxRounds is how often the sandbox is written down and restored, and settledRound
	// the one from which on it may hold no more than then.
	sandboxRounds = 50
	settledRound  = 10
	// maxSandboxRun is how long the sandbox runs between two checkpoints, and maxDeaf how
	// long before one it hears nothing any more: what it sends meanwhile is not acknowledged.
	maxSandboxRun = 200 * time.Millisecond
	maxDeaf       = 50 * time.Millisecond
	// runscWait bounds one command of runsc.
	runscWait = 30 * time.Second
)

// sandbox is a real one, driven further than the driver goes so far.
type sandbox struct {
	driver *gvisor.Driver
	slots  *network.Network
	slot   network.Slot
	runDir string
	flags  []string
	// images gets a directory for each checkpoint.
	images string
	n      int
}

func newSandbox(t *testing.T) *sandbox {
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
	s := &sandbox{runDir: runDir, images: t.TempDir()}
	overlay := t.TempDir()
	s.driver, err = gvisor.New(gvisor.Config{
		Binary: testenv.Bin(t, "runsc"), ProgramsDir: t.TempDir(), RunDir: runDir, OverlayDir: overlay,
		CgroupParent: filepath.Base(runDir), Log: slog.Default(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.driver.Close(); err != nil {
			t.Error(err)
		}
	})
	// The same as the driver's own; a restore checks that.
	s.flags = []string{
		"--root=" + filepath.Join(runDir, "gvisor"), "--network=sandbox", "--overlay2=root:dir=" + filepath.Join(runDir, "overlays"),
		"--allow-suid", "--in-sandbox-cgroup=v2", "--sidecar-usage-policy=DEFAULT",
		// But for this one: without it a restored sandbox gives up its connections at the
		// next checkpoint, since runsc forgets in the restore that they may be kept.
		"--allow-connected-on-save",
		"--log=" + filepath.Join(runDir, "runsc.log"), "--log-format=text",
	}
	s.slots, s.slot = newSlot(t, "f4ee2e02")
	s.boot(t)
	return s
}

func (s *sandbox) boot(t *testing.T) {
	t.Helper()
	images, err := image.Open(testenv.Images(t))
	if err != nil {
		t.Fatal(err)
	}
	base, err := images.EnsureBase(t.Context(), func(image.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	envd, err := os.ReadFile(testenv.Bin(t, "envd"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "envd"), envd, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.driver.Destroy(context.Background(), sandboxID); err != nil {
			t.Error(err)
		}
	})
	err = s.driver.Start(t.Context(), runtime.Spec{
		ID: sandboxID, Hostname: sandboxID, RootFS: base.Path,
		Args:      []string{mountPoint + "/envd", "--pids-max", "256", "--forward-interface", "eth0"},
		Env:       []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Mounts:    []runtime.Mount{{Source: dir, Target: mountPoint}},
		Namespace: s.slot.Namespace,
		Limits:    runtime.Limits{VCPUs: 2, MemoryMB: 512, DiskMB: 512, Processes: 256},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// runsc runs a command on the sandbox.
func (s *sandbox) runsc(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runscWait)
	defer cancel()
	// What it starts inherits files, never pipes that would be waited for.
	out, err := os.Create(filepath.Join(s.runDir, "runsc.out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, testenv.Bin(t, "runsc"), append(s.flags, append(args, sandboxID)...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Run(cmd); err != nil {
		said, _ := os.ReadFile(out.Name())
		log, _ := os.ReadFile(filepath.Join(s.runDir, "runsc.log"))
		t.Fatalf("runsc %s: %v: %s%s", args[0], err, bytes.TrimSpace(said), bytes.TrimSpace(log))
	}
}

// checkpoint writes the sandbox down, by do, and removes what was written.
func (s *sandbox) checkpoint(t *testing.T, do func(state string)) {
	t.Helper()
	s.n++
	state := filepath.Join(s.images, fmt.Sprint(s.n))
	do(state)
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
}

// goOn writes the sandbox down and lets it go on by itself.
func (s *sandbox) goOn(t *testing.T) {
	t.Helper()
	s.checkpoint(t, func(state string) { s.runsc(t, "checkpoint", "--image-path="+state, "--leave-running") })
}

// renew ends the sandbox with a checkpoint and restores it, so that the other ends of its
// connections do not notice. A sandbox that ends closes its connections, after they were
// written down; and one that has its network back, but not its connections yet, resets
// them. What is not let through to it is sent again. For a while before the checkpoint it
// hears nothing, so that some of what it has sent is not acknowledged when it is restored.
func (s *sandbox) renew(t *testing.T, state string, deaf time.Duration) {
	t.Helper()
	letThrough := block(t, "farewells", farewells(s.slot.Link))
	defer letThrough()
	hold := block(t, "all", everythingTo(s.slot.Link))
	defer hold()
	pause(t.Context(), deaf)
	s.runsc(t, "checkpoint", "--image-path="+state)
	s.runsc(t, "delete", "--force")
	// runsc has taken address and route for the sandbox that is gone.
	if err := s.slots.Configure(t.Context(), s.slot); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(s.runDir, "bundles", sandboxID)
	s.runsc(t, "create", "--bundle="+bundle, "--pid-file="+filepath.Join(bundle, "sentry.pid"))
	s.runsc(t, "restore", "--image-path="+state, "--detach")
}

func TestCheckpointedInASandbox(t *testing.T) {
	random := seeded(t)
	reaping, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	if err := child.Reap(reaping); err != nil {
		t.Fatal(err)
	}
	s := newSandbox(t)
	l := newLoad(t, s.slot.Guest.Addr().String(), "/tmp/freeze")
	l.awaitDaemon(t)
	l.init(t)
	l.serve(t)
	look := func() string {
		return l.inside(t, "ls /proc/1/fd | wc -l; ps --no-headers --ppid 1 -o comm= | sort | tr '\\n' ' '")
	}
	before := l.settled(t, look)

	l.begin(t)
	held := 0
	for round := 1; round <= sandboxRounds; round++ {
		pause(l.ctx, time.Duration(random.Int64N(int64(maxSandboxRun))))
		if round%5 == 0 {
			s.goOn(t)
		}
		resting, deaf := random.IntN(2) == 0, time.Duration(random.Int64N(int64(maxDeaf)))
		began := time.Now()
		renew := func() {
			s.checkpoint(t, func(state string) { s.renew(t, state, deaf) })
			l.awaitDaemon(t)
		}
		if resting {
			l.resting(t, renew)
		} else {
			renew()
			l.cuts.Add(1)
			l.init(t)
			l.cuts.Add(1)
		}
		t.Logf("round %d: at rest %v, deaf %v: %v", round, resting, deaf, time.Since(began).Round(time.Millisecond))
		if l.ctx.Err() != nil {
			t.Fatalf("round %d: %v", round, l.group.Wait())
		}
		l.goesOn(t)
		if round == settledRound {
			held = l.mostHeld(t)
		}
	}
	l.holdsAtMost(t, held)
	l.finish(t)
	l.settlesAt(t, before, look)
}

// held counts the open files of the daemon and its children.
func (l *load) held(t *testing.T) int {
	t.Helper()
	text := l.inside(t, "(ls /proc/1/fd; ps --no-headers --ppid 1) | wc -l")
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatalf("the sandbox counts %q", text)
	}
	return n
}

// mostHeld returns the most that the busy daemon holds, of several looks.
func (l *load) mostHeld(t *testing.T) int {
	t.Helper()
	const looks = 10
	most := 0
	for range looks {
		most = max(most, l.held(t))
	}
	return most
}

// holdsAtMost checks that the daemon, as busy as it was, holds no more again.
func (l *load) holdsAtMost(t *testing.T, most int) {
	t.Helper()
	now := 0
	if !eventually(l.ctx, func() bool {
		now = l.held(t)
		return now <= most
	}) {
		t.Errorf("the daemon holds %d files and children after %d rounds, and at most %d after %d", now, sandboxRounds, most, settledRound)
	}
	t.Logf("the busy daemon holds %d files and children after %d rounds, at most %d after %d", now, sandboxRounds, most, settledRound)
}

// inside returns what a script prints in the sandbox.
func (l *load) inside(t *testing.T, script string) string {
	t.Helper()
	cmd, err := l.start(t.Context(), script, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.cancel()
	var lines []string
	for {
		text, err := cmd.line()
		if err != nil {
			return strings.Join(append(lines, text), " ")
		}
		lines = append(lines, text)
	}
}
