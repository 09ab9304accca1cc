package process

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// runSubreaper is a program of its own, since being a subreaper would take this one's
// children from os/exec. Like PID 1 it is given every orphan; it fails if one stays a
// zombie or if it loses the end of a process that it started itself.
func runSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	m := NewManager(Config{Logger: slog.New(slog.DiscardHandler), ReapOrphans: true})
	defer m.Close()
	ctx, cancel := contextWithPatience()
	defer cancel()
	for round := range 50 {
		// Each leaves two orphans, which end before, with or after it.
		_, sub, err := m.Start(ctx, shell("(true &) ; (sleep 0.01 &) ; exit 5"))
		if err != nil {
			return err
		}
		for {
			ev, err := sub.Next(ctx, 0)
			if err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
			if ev.Kind == Ended {
				if ev.End.ExitCode != 5 {
					return fmt.Errorf("round %d: exit code %d", round, ev.End.ExitCode)
				}
				break
			}
		}
		sub.Close()
	}
	return await("no child is left", func() bool {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		return errors.Is(err, unix.ECHILD)
	})
}

func TestOrphansAreReaped(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// limited returns a Manager whose processes are limited, in a cgroup that is gone
// afterwards.
func limited(t *testing.T, limit int) (*Manager, string) {
	t.Helper()
	// Not t.TempDir, which removes all that is in it, and this gets the cgroups of the
	// whole machine.
	mount, err := os.MkdirTemp("", "wrenn-test-cgroup-")
	if err != nil {
		t.Fatal(err)
	}
	if !hasPids(t, mount) {
		if err := os.Remove(mount); err != nil {
			t.Error(err)
		}
		t.Skip("this machine's cgroups are version 1, as far as processes are counted")
	}
	name := fmt.Sprintf("wrenn-test-%d", os.Getpid())
	m := NewManager(Config{Logger: slog.New(slog.DiscardHandler), MaxProcesses: limit, CgroupMount: mount, CgroupName: name})
	t.Cleanup(func() {
		m.Close()
		group := filepath.Join(mount, name)
		err := await("the cgroup is empty and gone", func() bool {
			killMembers(group)
			err := os.Remove(group)
			return err == nil || errors.Is(err, os.ErrNotExist)
		})
		if err := errors.Join(err, unix.Unmount(mount, 0), os.Remove(mount)); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if m.limit != limit {
		t.Fatal("the limit was not set up")
	}
	return m, filepath.Join(mount, name)
}

// hasPids says whether cgroups of version 2 can limit processes here.
func hasPids(t *testing.T, mount string) bool {
	t.Helper()
	if err := unix.Mount("none", mount, "cgroup2", 0, ""); err != nil {
		return false
	}
	controllers, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err := errors.Join(err, unix.Unmount(mount, 0)); err != nil {
		t.Fatal(err)
	}
	return slices.Contains(strings.Fields(string(controllers)), "pids")
}

// killMembers kills what a test has put into a cgroup and orphaned.
func killMembers(group string) {
	procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return
	}
	for field := range strings.FieldsSeq(string(procs)) {
		if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

func TestProcessesAreLimited(t *testing.T) {
	m, group := limited(t, 10)
	_, sub := start(t, m, shell("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 60 & done; wait"))
	eventually(t, "the bomb has met the limit", func() bool {
		events, err := os.ReadFile(filepath.Join(group, "pids.events"))
		return err == nil && !strings.Contains(string(events), "max 0")
	})
	// The daemon itself is outside and goes on; another command is refused with words.
	waitForText(t, sub, "fork")
	_, _, err := m.Start(t.Context(), shell("true"))
	for err == nil { // the shell gives up and leaves some room
		_, _, err = m.Start(t.Context(), shell("sleep 60"))
	}
	if !fault.Is(err, fault.RateLimited) || !strings.Contains(fault.MessageOf(err), "limit of 10 processes") {
		t.Errorf("beyond the limit: %v", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || strings.Contains(string(own), filepath.Base(group)+"\n") {
		t.Errorf("the daemon is in the cgroup itself: %s, %v", own, err)
	}
}

// waitForText fails the test unless the process says text on stderr.
func waitForText(t *testing.T, sub *Subscription, text string) {
	t.Helper()
	var said strings.Builder
	for !strings.Contains(said.String(), text) {
		ev, err := sub.Next(t.Context(), patience)
		if err != nil || ev.Kind == Idle || ev.Kind == Ended {
			t.Fatalf("stderr has %q and not %q: %+v, %v", &said, text, ev, err)
		}
		if ev.Kind == Stderr {
			said.Write(ev.Data)
		}
		ev.Release()
	}
}

func TestLimitThatCannotBeSetUpIsNoFailure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := NewManager(Config{Logger: slog.New(slog.DiscardHandler), MaxProcesses: 10, CgroupMount: file, CgroupName: "x"})
	defer m.Close()
	_, sub := start(t, m, shell("exit 0"))
	if r := collect(t, sub); r.end.ExitCode != 0 {
		t.Errorf("end %+v", r.end)
	}
}
