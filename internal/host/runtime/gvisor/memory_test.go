package gvisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// A sentry has more memory than its guest's limit while it writes that down, and the limit
// is what it was as soon as the guest goes on, also when another agent lets it.
func TestLiftedMemoryLimitComesDown(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.sleeper(t, "lifted", slot)
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	limit := func() uint64 {
		t.Helper()
		n, err := p.driver.cgroups.memoryLimit(spec.ID)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	booted := uint64(spec.Limits.MemoryMB+sentryMemoryMB) * mib
	if got := limit(); got != booted {
		t.Fatalf("it began with %d bytes, not %d", got, booted)
	}
	dir := t.TempDir()
	if err := p.driver.Checkpoint(t.Context(), spec.ID, dir); err != nil {
		t.Fatal(err)
	}
	next := p.another(t)
	if got := limit(); got <= booted {
		t.Errorf("frozen it has %d bytes", got)
	}
	if err := next.Thaw(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	comesDown(t, limit, booted)
	// An agent that dies between a thaw and the end of the lowering leaves that to the next.
	if err := p.driver.memory.lift(spec.ID); err != nil {
		t.Fatal(err)
	}
	p.another(t)
	comesDown(t, limit, booted)
	if err := p.driver.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	p.renew(t, slot.Namespace)
	spec.Checkpoint = dir
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	comesDown(t, limit, booted+restoredMemoryMB*mib)
}

func comesDown(t *testing.T, limit func() uint64, want uint64) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); limit() != want; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("it has %d bytes and does not come down to %d", limit(), want)
		}
	}
}

// What one sentry may still take is not promised to another.
func TestHowFarALimitIsLifted(t *testing.T) {
	was := lifted{Limit: 600 * mib, Sentry: 100 * mib}
	for _, c := range []struct{ limit, sentry, want uint64 }{
		{limit: 1000 * mib, sentry: 50 * mib, want: 400 * mib},
		{limit: 1000 * mib, sentry: 300 * mib, want: 200 * mib},
		{limit: 1000 * mib, sentry: 700 * mib, want: 0},
		{limit: 500 * mib, sentry: 50 * mib, want: 0},
	} {
		if got := notTaken(was, c.limit, c.sentry); got != c.want {
			t.Errorf("%+v: %d MiB", c, got/mib)
		}
	}
	p := newPlace(t)
	const machine = 8 << 30
	p.driver.memory.available = func() (uint64, error) { return machine, nil }
	var booted uint64
	var limits []uint64
	for _, id := range []string{"first", "second"} {
		spec := p.sleeper(t, id, p.slot(t))
		if err := p.driver.Start(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if err := p.driver.memory.lift(id); err != nil {
			t.Fatal(err)
		}
		limit, err := p.driver.cgroups.memoryLimit(id)
		if err != nil {
			t.Fatal(err)
		}
		limits = append(limits, limit)
		booted = uint64(spec.Limits.MemoryMB+sentryMemoryMB) * mib
	}
	// A half, and a half of the rest: with what was there before.
	if limits[0] != booted+machine/2 || limits[1] != booted+machine/4 {
		t.Errorf("lifted to %v, want %d and %d", limits, booted+machine/2, booted+machine/4)
	}
}

// A sentry that has too little memory to write its guest down says so.
func TestOutOfMemoryInACheckpoint(t *testing.T) {
	p := newPlace(t)
	const files = 8000
	spec := p.holder(t, p.slot(t), fmt.Sprintf(`
os.mkdir("/root/many")
for n in range(%d):
    with open(f"/root/many/{n}", "w") as f: f.write("x" * 300)`, files), files*pageBytes)
	p.driver.memory.available = func() (uint64, error) { return 0, nil }
	p.until(t, "it gives back what it holds of files", func() bool {
		err := p.driver.cgroups.setMemoryLimit(spec.ID, p.uses(t, spec.ID).MemoryBytes+4*mib)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			t.Fatal(err)
		}
		return err == nil
	})
	err := p.driver.Checkpoint(t.Context(), spec.ID, t.TempDir())
	if !fault.Is(err, fault.AgentError) || !strings.Contains(err.Error(), "ran out of memory while it was written down") {
		t.Fatalf("a checkpoint without memory: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if exit, err := p.driver.Wait(ctx, spec.ID); err != nil || !exit.OutOfMemory {
		t.Errorf("it ended with %+v, %v", exit, err)
	}
}

// One that has too little to bring it back says so too, and what was written down is good
// when there is more.
func TestOutOfMemoryInARestore(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.holder(t, slot, "", 0)
	dir := t.TempDir()
	if err := p.driver.Checkpoint(t.Context(), spec.ID, dir); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	p.driver.memory.available = func() (uint64, error) { return 0, nil }
	back := spec
	back.Checkpoint = dir
	back.Limits.MemoryMB = 1 // and what every sentry has
	p.renew(t, slot.Namespace)
	err := p.driver.Start(t.Context(), back)
	if !fault.Is(err, fault.HostUnavailable) || !strings.Contains(err.Error(), "ran out of memory while it was brought back") {
		t.Errorf("a restore without memory: %v", err)
	}
	if left := p.driver.leftovers(t, spec.ID); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	back.Limits = spec.Limits
	p.renew(t, slot.Namespace)
	if err := p.driver.Start(t.Context(), back); err != nil {
		t.Fatalf("with enough memory: %v", err)
	}
	if got := p.uses(t, spec.ID).MemoryBytes; got < heldMB*mib {
		t.Errorf("it came back with %d MiB", got/mib)
	}
}

const (
	// heldMB is what a holder has in memory, and markMB what it writes when it has it, in MiB.
	heldMB = 120
	markMB = 16
	// pageBytes is what a small file takes of the disk.
	pageBytes = 4096
)

// holder starts a sandbox that does something, which takes so many bytes of the disk, and
// then holds memory; it returns when it does.
func (p *place) holder(t *testing.T, slot network.Slot, first string, disk uint64) runtime.Spec {
	t.Helper()
	spec := p.sleeper(t, "scarce", slot)
	spec.Limits.MemoryMB = 256
	spec.Args = []string{"/usr/bin/python3", "-c", fmt.Sprintf(`
import os, time
%s
held = os.urandom(%d << 20)
with open("/root/mark", "wb") as f: f.write(held[:%d << 20])
time.sleep(1000)`, first, heldMB, markMB)}
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	p.until(t, "it holds its memory", func() bool { return p.uses(t, spec.ID).DiskBytes >= disk+markMB*mib })
	return spec
}

func (p *place) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func (p *place) uses(t *testing.T, id string) runtime.Usage {
	t.Helper()
	used, err := p.driver.Usage(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// The guest keeps what it may have while the sentry has not given back what it took, and no
// limit is below what is used.
func TestHowFarALimitComesDown(t *testing.T) {
	was := lifted{Limit: 600 * mib, Sentry: 100 * mib}
	for _, c := range []struct {
		used, sentry uint64
		want         uint64
	}{
		{used: 300 * mib, sentry: 50 * mib, want: 600 * mib},
		{used: 300 * mib, sentry: 150 * mib, want: 650 * mib},
		{used: 700 * mib, sentry: 150 * mib, want: 700*mib + lowerSlack},
	} {
		if got := lowered(was, c.used, c.sentry); got != c.want {
			t.Errorf("%+v: %d MiB", c, got/mib)
		}
	}
}
