package gvisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/runtimetest"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

func TestConformance(t *testing.T) {
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
	config := Config{
		Binary: testenv.Bin(t, "runsc"), ProgramsDir: t.TempDir(), RunDir: runDir, OverlayDir: t.TempDir(),
		CgroupParent: filepath.Base(runDir), Log: slog.Default(),
	}
	driver, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Close(); err != nil {
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
	slots, err := network.Open(t.Context(), network.Config{Instance: fmt.Sprintf("%08x", os.Getpid()), DataDir: t.TempDir(), Log: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(slots.Sweep(context.Background(), nil), slots.Close()); err != nil {
			t.Error(err)
		}
	})
	held := map[string]network.Slot{}
	runtimetest.Run(t, runtimetest.Env{
		Driver: driver, RootFS: base.Path, EnvdDir: envdDir(t),
		Namespace: func(t *testing.T) (string, netip.Addr) {
			slot, err := slots.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := slots.Release(context.Background(), slot); err != nil {
					t.Error(err)
				}
			})
			held[slot.Namespace] = slot
			return slot.Namespace, slot.Guest.Addr()
		},
		Renew: func(t *testing.T, namespace string) {
			if err := slots.Configure(t.Context(), held[namespace]); err != nil {
				t.Fatal(err)
			}
		},
		Another: func(t *testing.T) runtimetest.Driver {
			another, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			return another
		},
		Leftovers: driver.leftovers,
	})
}

// envdDir returns a directory that holds the guest daemon and nothing else.
func envdDir(t *testing.T) string {
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
