package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// smallSecret and largeSecret are what witnesses have in memory, in bytes.
const (
	smallSecret = 1 << 20
	largeSecret = 48 << 20
)

// checkpoint writes a sandbox down into a new directory and leaves it frozen.
func (env Env) checkpoint(t *testing.T, id string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := env.Driver.Checkpoint(t.Context(), id, dir); err != nil {
		t.Fatalf("checkpoint: %v", err)
	}
	return dir
}

// startFrom starts a sandbox from a checkpoint, in a namespace that is ready.
func (env Env) startFrom(t *testing.T, g guest, dir string) guest {
	t.Helper()
	spec := env.spec(g.id, g.namespace)
	spec.Checkpoint = dir
	if err := env.Driver.Start(t.Context(), spec); err != nil {
		t.Fatalf("restore: %v", err)
	}
	return env.meet(t, g)
}

// renew replaces a frozen sandbox by what was written down of it.
func (env Env) renew(t *testing.T, g guest, dir string) guest {
	t.Helper()
	g.Close()
	env.destroy(t, g.id)
	env.Renew(t, g.namespace)
	return env.startFrom(t, g, dir)
}

// copyOf starts another sandbox from a checkpoint, which is destroyed when the test ends.
func (env Env) copyOf(t *testing.T, id, dir string) guest {
	t.Helper()
	namespace, address := env.Namespace(t)
	t.Cleanup(func() { env.destroy(t, id) })
	return env.startFrom(t, guest{id: id, namespace: namespace, address: address}, dir)
}

func checkpointFreezesUntilThaw(t *testing.T, env Env) {
	g := env.start(t, "conformfreeze")
	w := g.bringWitness(t, smallSecret)
	for range 3 {
		dir := env.checkpoint(t, g.id)
		frozen := time.Now()
		// Frozen means that the copy shows the very state in which the source still is when
		// it goes on, though time has passed.
		copied := env.copyOf(t, "conformfrozencopy", dir)
		inCopy := copied.witness().says(t, "prove")
		env.destroy(t, copied.id)
		slept := time.Since(frozen)
		for range 2 { // a second one finds it running
			if err := env.Driver.Thaw(t.Context(), g.id); err != nil {
				t.Fatal(err)
			}
		}
		said := w.says(t, "prove")
		if said.Gap < slept.Seconds() {
			t.Errorf("it was frozen for %v and ran after %.3f s", slept, said.Gap)
		}
		if said.Secret != inCopy.Secret || inCopy.Secret == "" {
			t.Errorf("memory differs: %s and, in the copy, %s", said.Secret, inCopy.Secret)
		}
		if !eventually(func() bool {
			later, err := w.ask("forget")
			return err == nil && later.Count > said.Count && later.File > said.File
		}) {
			t.Error("it does not go on after the thaw")
		}
	}
}

// restores is how many times in a row a sandbox goes through a checkpoint.
const restores = 20

func nothingIsLostInTwentyRestores(t *testing.T, env Env) {
	g := env.start(t, "conformtwenty")
	first := g.bringWitness(t, largeSecret).says(t, "prove")
	shell := guestclient.Selector{Tag: "shell"}
	g.beginShell(t, shell)
	g.typeInto(t, shell, "remembered=unforgotten")
	last := first
	for round := range restores {
		g.write(t, fmt.Sprintf("/root/round%d", round), fmt.Sprintln(round))
		due := time.Now().Add(time.Second)
		g.witness().says(t, "timer 1")
		dir := env.checkpoint(t, g.id)
		g = env.renew(t, g, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		said := g.witness().says(t, "prove")
		if said.Count < last.Count || said.File < last.File || said.Secret != first.Secret {
			t.Fatalf("round %d: it had %+v and has %+v", round, last, said)
		}
		if said.Fired > round && time.Now().Before(due) {
			t.Errorf("round %d: %d timers ran out too early", round, said.Fired)
		}
		last = said
	}
	if !eventually(func() bool { said, err := g.witness().ask("look"); return err == nil && said.Fired == restores }) {
		t.Errorf("of %d timers %d ran out", restores, g.witness().says(t, "look").Fired)
	}
	g.want(t, "cat /root/round* | sort -n | tail -1; ls /root/round* | wc -l", fmt.Sprintf("%d\n%d", restores-1, restores))
	g.typeInto(t, shell, "echo it is $remembered > /root/said")
	if !eventually(func() bool { out, _ := g.sh(t, "root", "cat /root/said"); return out == "it is unforgotten" }) {
		t.Error("the shell on the terminal has forgotten its variable")
	}
}

// beginShell starts a shell on a terminal that nobody listens to.
func (g guest) beginShell(t *testing.T, shell guestclient.Selector) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := g.Start(ctx, guestclient.Command{Cmd: "/bin/bash", Tag: shell.Tag, Terminal: &guestclient.TerminalSize{Rows: 24, Cols: 80}},
		func(guestclient.Event) error { cancel(); return context.Canceled })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("start a shell: %v", err)
	}
}

func (g guest) typeInto(t *testing.T, shell guestclient.Selector, line string) {
	t.Helper()
	if err := g.SendTerminalInput(t.Context(), shell, []byte(line+"\n")); err != nil {
		t.Fatal(err)
	}
}

func copiesAreAlikeAndApart(t *testing.T, env Env) {
	g := env.start(t, "conformsource")
	g.bringWitness(t, smallSecret)
	g.want(t, "echo common > /root/common; hostname", "conformsource")
	dir := env.checkpoint(t, g.id)
	if err := env.Driver.Thaw(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	a, b := env.copyOf(t, "conformleft", dir), env.copyOf(t, "conformright", dir)
	want := g.witness().says(t, "prove").Secret
	for _, c := range []guest{a, b} {
		c.want(t, "hostname; cat /root/common", c.id+"\ncommon")
		if got := c.witness().says(t, "prove").Secret; got != want {
			t.Errorf("%s has something else in memory", c.id)
		}
	}
	a.want(t, "echo a > /root/own; cat /root/own", "a")
	b.want(t, "cat /root/own 2>/dev/null || echo absent", "absent")
	g.want(t, "cat /root/own 2>/dev/null || echo absent", "absent")
	// A copy can be written down as well, and what is gone does not hurt it.
	env.destroy(t, g.id)
	second := env.checkpoint(t, a.id)
	a = env.renew(t, a, second)
	a.want(t, "cat /root/own", "a")
	b.want(t, "cat /root/common", "common")
}

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

// A driver knows of a sandbox what the machine knows, so that another process goes on
// where one has died.
func anotherProcessDrivesIt(t *testing.T, env Env) {
	g := env.start(t, "conformadopt")
	before := g.bringWitness(t, smallSecret).says(t, "prove")
	dir := env.checkpoint(t, g.id)

	second := env.Another(t)
	if err := second.Thaw(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	env.goesOn(t, g, before)
	if used, err := second.Usage(t.Context(), g.id); err != nil || used.MemoryBytes == 0 {
		t.Errorf("usage %+v, %v", used, err)
	}
	if err := second.Checkpoint(t.Context(), g.id, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if err := env.Driver.Thaw(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	env.goesOn(t, g, before)
	ended := make(chan error, 1)
	go func() { _, err := env.Driver.Wait(t.Context(), g.id); ended <- err }()
	if err := second.Destroy(t.Context(), g.id); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(endWait):
		t.Error("the first does not see the end that the second made")
	}
	env.expectNothing(t, g.id)
	if err := second.Thaw(t.Context(), g.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("thaw of what has ended: %v", err)
	}
	third := env.Another(t)
	spec := env.spec(g.id, g.namespace)
	spec.Checkpoint = dir
	env.Renew(t, g.namespace)
	if err := third.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	env.goesOn(t, env.meet(t, g), before)
}

const (
	usageMB = 64
	mib     = 1 << 20
)

func usageIsTold(t *testing.T, env Env) {
	g := env.start(t, "conformusage")
	usage := func() runtime.Usage {
		t.Helper()
		used, err := env.Driver.Usage(t.Context(), g.id)
		if err != nil {
			t.Fatal(err)
		}
		return used
	}
	before := usage()
	if before.MemoryBytes == 0 || before.MemoryBytes > memoryMB*mib || before.CPU == 0 {
		t.Errorf("an idle sandbox uses %+v", before)
	}
	g.want(t, "timeout 1 sh -c 'while :; do :; done'; echo burnt", "burnt")
	if cpu := usage().CPU - before.CPU; cpu < 500*time.Millisecond || cpu > 10*time.Second {
		t.Errorf("a busy second took %v", cpu)
	}
	g.want(t, fmt.Sprintf("head -c %d /dev/urandom > /root/big; sync; echo written", usageMB*mib), "written")
	written := usage()
	if grown := int64(written.DiskBytes - before.DiskBytes); grown < usageMB*mib || grown > 2*usageMB*mib {
		t.Errorf("%d MiB written count as %d", usageMB, grown/mib)
	}
	if grown := int64(written.MemoryBytes) - int64(before.MemoryBytes); grown > usageMB*mib/2 {
		t.Errorf("a file counts as %d MiB of memory", grown/mib)
	}
	g.want(t, "rm /root/big; sync; echo removed", "removed")
	if !eventually(func() bool { return usage().DiskBytes < before.DiskBytes+usageMB*mib/4 }) {
		t.Errorf("after the removal it is %d MiB", usage().DiskBytes/mib)
	}
	g.bringWitness(t, usageMB*mib)
	if grown := int64(usage().MemoryBytes - before.MemoryBytes); grown < usageMB*mib {
		t.Errorf("a process with %d MiB counts as %d", usageMB, grown/mib)
	}
	g.want(t, "pkill python3; echo ended", "ended")
	if !eventually(func() bool { return usage().MemoryBytes < before.MemoryBytes+usageMB*mib/2 }) {
		t.Errorf("after its end the sandbox holds %d MiB", usage().MemoryBytes/mib)
	}
	env.destroy(t, g.id)
	for _, id := range []string{g.id, "conformnever"} {
		if _, err := env.Driver.Usage(t.Context(), id); !fault.Is(err, fault.NotFound) {
			t.Errorf("usage of %s, which does not run: %v", id, err)
		}
	}
}
