// Package freeze holds a test: a busy guest daemon is frozen at random moments, and must
// go on as if nothing had been.
package freeze

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hostRounds = 50
	// maxRun is how long the daemon runs between two freezes, and maxFrozen how long it
	// stays frozen.
	maxRun    = 60 * time.Millisecond
	maxFrozen = 80 * time.Millisecond
)

// seeded returns randomness that a failure can be repeated with.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("WRENN_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("again with WRENN_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// newSlot returns a network of its own.
func newSlot(t *testing.T, instance string) (*network.Network, network.Slot) {
	t.Helper()
	slots, err := network.Open(t.Context(), network.Config{Instance: instance, DataDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slots.Close(); err != nil {
			t.Error(err)
		}
	})
	slot, err := slots.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slots.Release(context.Background(), slot); err != nil {
			t.Error(err)
		}
	})
	return slots, slot
}

// hostDaemon runs the daemon on this machine, in a network of its own.
func hostDaemon(t *testing.T, slot network.Slot) *os.Process {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "envd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "nsenter", "--net="+slot.Namespace, "--",
		testenv.Bin(t, "envd"), "--listen", ":49983", "--forward-interface", "eth0")
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGCONT)
		_ = cmd.Process.Signal(unix.SIGTERM) // it ends what it has started
		timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the daemon's log:\n%s", text)
		}
	})
	return cmd.Process
}

func TestFrozenOnTheHost(t *testing.T) {
	random := seeded(t)
	_, slot := newSlot(t, "f4ee2e01")
	daemon := hostDaemon(t, slot)
	l := newLoad(t, slot.Guest.Addr().String(), t.TempDir())
	l.awaitDaemon(t)
	l.init(t)
	l.serve(t)
	look := func() string { return holdings(t, daemon.Pid) }
	before := l.settled(t, look)

	l.begin(t)
	for round := range hostRounds {
		pause(l.ctx, time.Duration(random.Int64N(int64(maxRun))))
		frozen := time.Duration(random.Int64N(int64(maxFrozen)))
		// Sometimes alone, so that what it started goes on and fills every buffer;
		// sometimes at rest, as before a snapshot.
		all, resting := random.IntN(2) == 0, random.IntN(4) == 0
		freeze := func() {
			pids := []int{daemon.Pid}
			if all {
				pids = append(pids, children(t, daemon.Pid)...)
			}
			signalAll(pids, unix.SIGSTOP)
			pause(l.ctx, frozen)
			signalAll(pids, unix.SIGCONT)
		}
		if resting {
			l.resting(t, freeze)
		} else {
			freeze()
		}
		if l.ctx.Err() != nil {
			t.Fatalf("round %d: %v", round, l.group.Wait())
		}
		if round%5 == 4 {
			l.goesOn(t)
		}
	}
	l.goesOn(t)
	l.finish(t)

	l.settlesAt(t, before, look)
}

func signalAll(pids []int, sig unix.Signal) {
	for _, pid := range pids {
		_ = unix.Kill(pid, sig) // children end all the time
	}
}

// children returns the direct children of a process.
func children(t *testing.T, pid int) []int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // a thread that has ended
		}
		for _, field := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// holdings says what the daemon has, as far as it can leak: files and children.
func holdings(t *testing.T, pid int) string {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d open files and %d children", len(files), len(children(t, pid)))
}
