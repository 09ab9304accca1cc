package gvisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// sleeper is a sandbox that does nothing.
func (p *place) sleeper(t testing.TB, id string, slot network.Slot) runtime.Spec {
	t.Helper()
	t.Cleanup(func() {
		if err := p.driver.Destroy(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return runtime.Spec{
		ID: id, Hostname: id, RootFS: p.image, Args: []string{"/bin/sleep", "infinity"},
		Env:       []string{"PATH=/bin:/usr/bin"},
		Mounts:    []runtime.Mount{{Source: t.TempDir(), Target: "/mnt"}},
		Namespace: slot.Namespace,
		Limits:    runtime.Limits{VCPUs: 1, MemoryMB: 128, DiskMB: 128, Processes: 32},
	}
}

// upgraded returns a driver with another runsc, as after an upgrade.
func (p *place) upgraded(t *testing.T) *Driver {
	t.Helper()
	binary, err := os.ReadFile(p.config.Binary)
	if err != nil {
		t.Fatal(err)
	}
	config := p.config
	config.Binary = filepath.Join(t.TempDir(), "runsc")
	// What follows the sections of a program is not loaded, so this is the same in effect.
	if err := os.WriteFile(config.Binary, append(binary, "newer"...), 0o755); err != nil {
		t.Fatal(err)
	}
	driver, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return driver
}

// runs returns the hash of the program that a sandbox's sentry is.
func (d *Driver) runs(t *testing.T, id string) string {
	t.Helper()
	pid, err := d.sentryPID(id)
	if err != nil {
		t.Fatal(err)
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(filepath.Dir(path))
}

func TestCheckpointOutlivesAnUpgrade(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.sleeper(t, "upgrade", slot)
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	newer := p.upgraded(t)
	if newer.current == p.driver.current {
		t.Fatal("the upgrade changed nothing")
	}
	// What runs is driven by what started it, and that is kept though no checkpoint needs it.
	if err := newer.RemovePrograms(nil); err != nil {
		t.Fatal(err)
	}
	if got := filepath.Base(filepath.Dir(newer.program(spec.ID))); got != p.driver.current {
		t.Errorf("a running sandbox is driven by %s", got)
	}
	spec.Checkpoint = t.TempDir()
	if err := newer.Checkpoint(t.Context(), spec.ID, spec.Checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := newer.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	if err := newer.RemovePrograms([]string{spec.Checkpoint}); err != nil {
		t.Fatal(err)
	}
	p.renew(t, slot.Namespace)
	if err := newer.Start(t.Context(), spec); err != nil {
		t.Fatalf("restore after an upgrade: %v", err)
	}
	if got := newer.runs(t, spec.ID); got != p.driver.current {
		t.Errorf("it was restored by %s, written by %s", got, p.driver.current)
	}
	if err := newer.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	p.renew(t, slot.Namespace)
	fresh := spec
	fresh.Checkpoint = ""
	if err := newer.Start(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	if got := newer.runs(t, spec.ID); got != newer.current {
		t.Errorf("a new sandbox was started by %s", got)
	}
	if err := newer.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}

	if err := newer.RemovePrograms(nil); err != nil {
		t.Fatal(err)
	}
	err := newer.Start(t.Context(), spec)
	if !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), p.driver.current[:12]) {
		t.Errorf("a restore without its program: %v", err)
	}
	if left := p.driver.leftovers(t, spec.ID); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestCheckpointWantsItsImage(t *testing.T) {
	p := newPlace(t)
	data, err := os.ReadFile(p.image)
	if err != nil {
		t.Fatal(err)
	}
	p.image = filepath.Join(t.TempDir(), "base-1.erofs")
	if err := os.WriteFile(p.image, data, 0o600); err != nil {
		t.Fatal(err)
	}
	slot := p.slot(t)
	spec := p.sleeper(t, "image", slot)
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	spec.Checkpoint = t.TempDir()
	if err := p.driver.Checkpoint(t.Context(), spec.ID, spec.Checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	// The same size and contents but for the UUID: it was built again.
	const uuidOffset = superOffset + 48
	data[uuidOffset] ^= 1
	if err := os.WriteFile(p.image, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p.renew(t, slot.Namespace)
	if err := p.driver.Start(t.Context(), spec); !fault.Is(err, fault.InvalidState) {
		t.Errorf("a restore over another image: %v", err)
	}
	spec.RootFS = filepath.Join(t.TempDir(), "gone.erofs")
	if err := p.driver.Start(t.Context(), spec); !fault.Is(err, fault.InvalidState) {
		t.Errorf("a restore without its image: %v", err)
	}
	data[uuidOffset] ^= 1
	spec.RootFS = filepath.Join(t.TempDir(), "moved.erofs") // it may live elsewhere, though
	if err := os.WriteFile(spec.RootFS, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Errorf("a restore over the same image in another place: %v", err)
	}
}

// What is under /run is gone after a restart of the machine.
func TestCheckpointOutlivesTheRunDirectory(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.sleeper(t, "reboot", slot)
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	spec.Checkpoint = t.TempDir()
	if err := p.driver.Checkpoint(t.Context(), spec.ID, spec.Checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Close(); err != nil {
		t.Fatal(err)
	}
	p.renew(t, slot.Namespace)
	if err := p.another(t).Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}

func TestCheckpointOfADyingSentryFails(t *testing.T) {
	p := newPlace(t)
	for _, after := range []int{0, 2, 5, 10, 20} {
		slot := p.slot(t)
		spec := p.sleeper(t, "dying", slot)
		if err := p.driver.Start(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		pid, err := p.driver.sentryPID(spec.ID)
		if err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(after)*time.Millisecond, func() { _ = unix.Kill(pid, unix.SIGKILL) })
		err = p.driver.Checkpoint(t.Context(), spec.ID, t.TempDir())
		if timer.Stop() && err != nil {
			t.Errorf("a checkpoint of a sandbox that lives: %v", err)
		}
		// Whatever became of the checkpoint, the end of the sandbox is told.
		_ = unix.Kill(pid, unix.SIGKILL)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := p.driver.Wait(ctx, spec.ID); err != nil {
			t.Error(err)
		}
		cancel()
		if err := p.driver.Checkpoint(t.Context(), spec.ID, t.TempDir()); !fault.Is(err, fault.NotFound) {
			t.Errorf("a checkpoint of a dead sandbox: %v", err)
		}
		if err := p.driver.Thaw(t.Context(), spec.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("a thaw of a dead sandbox: %v", err)
		}
		if err := p.driver.Destroy(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
		if left := p.driver.leftovers(t, spec.ID); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

func TestHalfAProgramIsMadeWhole(t *testing.T) {
	kept := programs{t.TempDir()}
	binary := filepath.Join(t.TempDir(), "runsc")
	if err := os.WriteFile(binary, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	hash, err := kept.keep(binary)
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func() error{
		"truncated": func() error { return os.Truncate(kept.path(hash), 3) },
		"missing":   func() error { return os.Remove(kept.path(hash)) },
		"half":      func() error { return os.Mkdir(filepath.Join(kept.dir, halfPrefix+"1"), 0o700) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if again, err := kept.keep(binary); err != nil || again != hash {
			t.Errorf("%s: %q, %v", what, again, err)
		}
		if data, err := os.ReadFile(kept.path(hash)); err != nil || string(data) != "a program" {
			t.Errorf("%s: it is %q now, %v", what, data, err)
		}
		if entries, err := os.ReadDir(kept.dir); err != nil || len(entries) != 1 {
			t.Errorf("%s: left %v, %v", what, entries, err)
		}
	}
}
