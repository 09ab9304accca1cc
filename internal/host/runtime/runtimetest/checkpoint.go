package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
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
		// Who answers may go on a moment before who counts.
		gap := said.Gap
		if !eventually(func() bool {
			later, err := w.ask("prove")
			if err == nil {
				gap = later.Gap
			}
			return gap >= slept.Seconds()
		}) {
			t.Errorf("it was frozen for %v and ran after %.3f s", slept, gap)
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

// fullSecret is almost all that a guest can have in its memory, in bytes.
const fullSecret = (memoryMB - 24) << 20

// Who saves and who restores need memory too, at the same limit.
func fullMemoryIsRestored(t *testing.T, env Env) {
	g := env.start(t, "conformbrim")
	before := g.bringWitness(t, fullSecret).says(t, "prove")
	for range 2 {
		g = env.renew(t, g, env.checkpoint(t, g.id))
		env.goesOn(t, g, before)
	}
}

// manyFiles take little of a guest's memory, and more of who writes each of them down than
// the guest has altogether.
const manyFiles = 40_000

// makeFiles makes them, quickly.
const makeFiles = `
import os
for d in range(%d // 1000):
    os.makedirs(f"/root/many/{d}")
    for n in range(1000):
        fd = os.open(f"/root/many/{d}/{n}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x" * 300)
        os.close(fd)
`

// What needs memory for a moment only, to write a sandbox down or to bring it back, is not
// taken from the guest's.
func manyFilesAreRestored(t *testing.T, env Env) {
	g := env.start(t, "conformmany")
	before := g.bringWitness(t, smallSecret).says(t, "prove")
	g.write(t, "/root/make.py", fmt.Sprintf(makeFiles, manyFiles))
	g.want(t, "python3 /root/make.py", "")
	dir := env.checkpoint(t, g.id)
	if err := env.Driver.Thaw(t.Context(), g.id); err != nil { // it goes on with all it had
		t.Fatal(err)
	}
	env.goesOn(t, g, before)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	g = env.renew(t, g, env.checkpoint(t, g.id))
	env.goesOn(t, g, before)
	g.want(t, "ls /root/many/39 | wc -l; cat /root/many/39/999 | wc -c", "1000\n300")
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
