package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// tinyDisk is a file system in memory of so many MiB.
func tinyDisk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func failedCheckpointIsNotNoticed(t *testing.T, env Env) {
	g := env.start(t, "conformfull")
	w := g.bringWitness(t, largeSecret)
	before := w.says(t, "prove")
	if err := env.Driver.Checkpoint(t.Context(), g.id, tinyDisk(t, 8)); !fault.Is(err, fault.NoSpace) {
		t.Errorf("a checkpoint to a disk of 8 MiB: %v", err)
	}
	if err := env.Driver.Checkpoint(t.Context(), g.id, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a checkpoint to no directory succeeded")
	}
	if err := env.Driver.Checkpoint(t.Context(), "conformnobody", t.TempDir()); !fault.Is(err, fault.NotFound) {
		t.Errorf("a checkpoint of nothing: %v", err)
	}
	env.goesOn(t, g, before)
	// And the next one is whole.
	g = env.renew(t, g, env.checkpoint(t, g.id))
	env.goesOn(t, g, before)
}

// goesOn expects a witness to run and to have forgotten nothing.
func (env Env) goesOn(t *testing.T, g guest, before testimony) {
	t.Helper()
	now := g.witness().says(t, "prove")
	if now.Secret != before.Secret || now.Count < before.Count {
		t.Errorf("it had %+v and has %+v", before, now)
	}
	if !eventually(func() bool { later, err := g.witness().ask("look"); return err == nil && later.Count > now.Count }) {
		t.Error("it does not run on")
	}
	g.want(t, "echo usable", "usable")
}

func cancelledCheckpointIsNotNoticed(t *testing.T, env Env) {
	g := env.start(t, "conformcancel")
	before := g.bringWitness(t, largeSecret).says(t, "prove")
	for _, after := range []int{0, 1, 3, 10, 20, 40, 80} {
		cut := time.Duration(after) * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), cut)
		err := env.Driver.Checkpoint(ctx, g.id, t.TempDir())
		cancel()
		if err == nil { // it was quicker than the cut
			err = env.Driver.Thaw(t.Context(), g.id)
		} else if errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		if err != nil {
			t.Errorf("cut off after %v: %v", cut, err)
		}
		env.goesOn(t, g, before)
	}
}

// A disk that fills up while the state is being written.
func fullDiskIsNotNoticed(t *testing.T, env Env) {
	const plenty, tiny, attempts = 4096, 4, 20
	g := env.start(t, "conformfills")
	before := g.bringWitness(t, largeSecret).says(t, "prove")
	for range attempts {
		disk := tinyDisk(t, plenty)
		ctx, cancel := context.WithCancel(t.Context())
		shrunk := make(chan bool, 1)
		go func() { shrunk <- shrinkOnceUsed(ctx, disk, tiny) }()
		err := env.Driver.Checkpoint(t.Context(), g.id, disk)
		cancel()
		if !<-shrunk {
			if err != nil {
				t.Fatal(err)
			}
			if err := env.Driver.Thaw(t.Context(), g.id); err != nil { // it was quicker than us
				t.Fatal(err)
			}
			continue
		}
		if !fault.Is(err, fault.NoSpace) {
			t.Errorf("a checkpoint to a disk that filled up: %v", err)
		}
		env.goesOn(t, g, before)
		env.goesOn(t, env.renew(t, g, env.checkpoint(t, g.id)), before)
		return
	}
	t.Errorf("in %d attempts the disk did not fill in time", attempts)
}

// shrinkOnceUsed takes a disk's room away as soon as there is a file on it, and reports
// whether it could before there was too much.
func shrinkOnceUsed(ctx context.Context, disk string, mib int) bool {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if files, err := os.ReadDir(disk); err == nil && len(files) > 0 {
			return unix.Mount("", disk, "", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", mib)) == nil
		}
		<-tick.C
	}
	return false
}

// killedCheckpoints is how many checkpoints are killed, each within longestKill.
const (
	killedCheckpoints = 20
	longestKill       = 120 * time.Millisecond
)

func killedCheckpointCanBeThawed(t *testing.T, env Env) {
	g := env.start(t, "conformkilled")
	before := g.bringWitness(t, largeSecret).says(t, "prove")
	for round := range killedCheckpoints {
		after := rand.N(longestKill)
		kill := env.Elsewhere(t, g.id, t.TempDir())
		<-time.After(after) // a moment in the middle of it, wherever that is
		kill()
		if err := env.Driver.Thaw(t.Context(), g.id); err != nil {
			t.Fatalf("round %d, killed after %v: %v", round, after, err)
		}
		env.goesOn(t, g, before)
	}
	env.goesOn(t, env.renew(t, g, env.checkpoint(t, g.id)), before)
}

func failedRestoreLeavesNothing(t *testing.T, env Env) {
	g := env.start(t, "conformwhole")
	g.bringWitness(t, smallSecret)
	dir := env.checkpoint(t, g.id)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		broken := t.TempDir()
		if err := os.CopyFS(broken, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		// Nothing of a checkpoint can be done without.
		if err := os.Truncate(filepath.Join(broken, file.Name()), 0); err != nil {
			t.Fatal(err)
		}
		_ = env.failsToStart(t, "without "+file.Name(), broken, nil)
	}
	_ = env.failsToStart(t, "no directory", filepath.Join(t.TempDir(), "none"), nil)
	if err := env.Driver.Thaw(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	g.want(t, "echo untouched", "untouched")
}

// failsToStart expects a start from a checkpoint to fail and to leave nothing.
func (env Env) failsToStart(t *testing.T, what, dir string, before func(context.Context) error) error {
	t.Helper()
	namespace, _ := env.Namespace(t)
	spec := env.spec("conformhalf", namespace)
	spec.Checkpoint, spec.BeforeRestore = dir, before
	err := env.Driver.Start(t.Context(), spec)
	if err == nil {
		t.Errorf("%s: started", what)
		env.destroy(t, spec.ID)
	}
	env.expectNothing(t, spec.ID)
	return err
}

func cancelledRestoreLeavesNothing(t *testing.T, env Env) {
	g := env.start(t, "conformkeeps")
	g.bringWitness(t, smallSecret)
	dir := env.checkpoint(t, g.id)
	if err := env.Driver.Thaw(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	for _, after := range []int{0, 10, 30, 60, 90, 120} {
		namespace, _ := env.Namespace(t)
		spec := env.spec("conformcut", namespace)
		spec.Checkpoint = dir
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(after)*time.Millisecond)
		err := env.Driver.Start(ctx, spec)
		cancel()
		if err == nil {
			env.destroy(t, spec.ID) // it was quicker than the cut
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cut off after %d ms: %v", after, err)
		}
		env.expectNothing(t, spec.ID)
	}
	env.copyOf(t, "conformcut", dir).want(t, "hostname", "conformcut")
}

func beforeRestoreIsHeard(t *testing.T, env Env) {
	g := env.start(t, "conformheard")
	w := g.bringWitness(t, smallSecret)
	dir := env.checkpoint(t, g.id)
	if err := env.Driver.Thaw(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	refusal := fault.New(fault.InvalidState, "it is damaged")
	err := env.failsToStart(t, "refused", dir, func(context.Context) error { return refusal })
	if !errors.Is(err, refusal) {
		t.Errorf("a refused restore says %v", err)
	}
	// What cannot even be prepared cuts the wait off.
	namespace, _ := env.Namespace(t)
	spec := env.spec("conformhalf", namespace)
	spec.Checkpoint, spec.Mounts[0].Source = dir, filepath.Join(t.TempDir(), "none")
	spec.BeforeRestore = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	if err := env.Driver.Start(t.Context(), spec); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a restore without its mount says %v", err)
	}
	env.expectNothing(t, spec.ID)

	namespace, address := env.Namespace(t)
	spec = env.spec("conformlate", namespace)
	spec.Checkpoint = dir
	spec.BeforeRestore = func(context.Context) error {
		// Nothing of the copy may run before this returns, so it takes its time: until the
		// source has counted on.
		began := w.says(t, "look").Count
		if !eventually(func() bool { said, err := w.ask("look"); return err == nil && said.Count > began+100 }) {
			return errors.New("the source does not count")
		}
		dialer := net.Dialer{Timeout: 50 * time.Millisecond}
		if conn, err := dialer.DialContext(t.Context(), "tcp", guest{address: address}.witness().address); err == nil {
			return errors.Join(errors.New("the copy runs already"), conn.Close())
		}
		return nil
	}
	t.Cleanup(func() { env.destroy(t, spec.ID) })
	if err := env.Driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	env.meet(t, guest{id: spec.ID, namespace: namespace, address: address}).want(t, "hostname", spec.ID)
}
