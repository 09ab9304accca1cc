// Package runtimetest is the conformance suite of runtime drivers: what it checks is
// what the contract in package runtime promises. Every driver's tests run it. It reaches
// into sandboxes through the real guest daemon.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// Env is what a driver is tested in.
type Env struct {
	Driver Driver
	// Another returns a driver such as another process of ours would make over the same
	// sandboxes.
	Another func(t *testing.T) Driver
	// Elsewhere begins a checkpoint in another process and returns, as soon as it has
	// begun, what kills that process and waits for its end.
	Elsewhere func(t *testing.T, id, dir string) (kill func())
	// RootFS is an EROFS image of the Debian base; EnvdDir holds the guest daemon.
	RootFS  string
	EnvdDir string
	// Namespace returns a network namespace for one start, ready to be used, and the
	// address that the guest has in it. It is given back when the test ends.
	Namespace func(t *testing.T) (path string, guest netip.Addr)
	// Renew makes a namespace ready for another start.
	Renew func(t *testing.T, path string)
	// Leftovers describes everything of an id that is on the machine now: processes,
	// cgroups, files. After Destroy there must be nothing.
	Leftovers func(t *testing.T, id string) []string
}

const (
	token      = "conformance"
	mountPoint = "/run/wrenn/bin"
	readyWait  = 20 * time.Second
	endWait    = 20 * time.Second
	diskMB     = 256
	memoryMB   = 256
	processes  = 64
)

// Driver is all that a driver can do.
type Driver interface {
	runtime.Driver
	runtime.Checkpointer
	runtime.Meter
}

// Run runs the suite.
func Run(t *testing.T, env Env) {
	for name, test := range map[string]func(*testing.T, Env){
		"StartGivesARunningGuest":        startGivesARunningGuest,
		"TwoOfOneImageAreApart":          twoOfOneImageAreApart,
		"DiskIsLimited":                  diskIsLimited,
		"MemoryIsLimited":                memoryIsLimited,
		"ForkBombIsHeld":                 forkBombIsHeld,
		"RootMayChangeUser":              rootMayChangeUser,
		"WaitSeesDestroy":                waitSeesDestroy,
		"WaitEndsWithItsContext":         waitEndsWithItsContext,
		"DestroyOfUnknownIsNoError":      destroyOfUnknownIsNoError,
		"FailedStartLeavesNothing":       failedStartLeavesNothing,
		"CancelledStartLeavesNothing":    cancelledStartLeavesNothing,
		"EndedSandboxCanBeDestroyed":     endedSandboxCanBeDestroyed,
		"ListKnowsRunningAndNotTheEnded": listKnowsRunningAndNotTheEnded,

		"CheckpointFreezesUntilThaw":      checkpointFreezesUntilThaw,
		"NothingIsLostInTwentyRestores":   nothingIsLostInTwentyRestores,
		"FullMemoryIsRestored":            fullMemoryIsRestored,
		"ManyFilesAreRestored":            manyFilesAreRestored,
		"CopiesAreAlikeAndApart":          copiesAreAlikeAndApart,
		"FailedCheckpointIsNotNoticed":    failedCheckpointIsNotNoticed,
		"CancelledCheckpointIsNotNoticed": cancelledCheckpointIsNotNoticed,
		"FullDiskIsNotNoticed":            fullDiskIsNotNoticed,
		"KilledCheckpointCanBeThawed":     killedCheckpointCanBeThawed,
		"FailedRestoreLeavesNothing":      failedRestoreLeavesNothing,
		"CancelledRestoreLeavesNothing":   cancelledRestoreLeavesNothing,
		"BeforeRestoreIsHeard":            beforeRestoreIsHeard,
		"AnotherProcessDrivesIt":          anotherProcessDrivesIt,
		"UsageIsTold":                     usageIsTold,
	} {
		t.Run(name, func(t *testing.T) { test(t, env) })
	}
}

// guest is a started sandbox.
type guest struct {
	*guestclient.Client
	id        string
	namespace string
	address   netip.Addr
}

func (env Env) spec(id, namespace string) runtime.Spec {
	return runtime.Spec{
		ID: id, Hostname: id, RootFS: env.RootFS,
		Args:      []string{mountPoint + "/envd", "--pids-max", strconv.Itoa(processes)},
		Env:       []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Mounts:    []runtime.Mount{{Source: env.EnvdDir, Target: mountPoint}},
		Namespace: namespace,
		Limits:    runtime.Limits{VCPUs: 1, MemoryMB: memoryMB, DiskMB: diskMB, Processes: processes},
	}
}

// start boots a sandbox that is destroyed, and looked for, when the test ends.
func (env Env) start(t *testing.T, id string) guest {
	t.Helper()
	namespace, address := env.Namespace(t)
	if err := env.Driver.Start(t.Context(), env.spec(id, namespace)); err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() { env.destroy(t, id) })
	return env.meet(t, guest{id: id, namespace: namespace, address: address})
}

// meet waits for the daemon of a guest that was started and tells it who it is.
func (env Env) meet(t *testing.T, g guest) guest {
	t.Helper()
	g.Client = guestclient.New(&net.TCPAddr{IP: g.address.AsSlice(), Port: guestclient.Port}, token)
	t.Cleanup(g.Close)
	ctx, cancel := context.WithTimeout(t.Context(), readyWait)
	defer cancel()
	if err := g.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Init(ctx, guestclient.Init{AccessToken: token, SandboxID: g.id, Hostname: g.id, DefaultUser: "root", Timestamp: time.Now()}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (env Env) destroy(t *testing.T, id string) {
	t.Helper()
	if err := env.Driver.Destroy(context.Background(), id); err != nil {
		t.Errorf("destroy: %v", err)
	}
	env.expectNothing(t, id)
}

func (env Env) expectNothing(t *testing.T, id string) {
	t.Helper()
	var left []string
	if !eventually(func() bool { left = env.Leftovers(t, id); return len(left) == 0 }) {
		t.Errorf("left of %s: %s", id, strings.Join(left, ", "))
	}
}

// eventually waits for a condition, for at most endWait.
func eventually(condition func() bool) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(endWait); ; <-tick.C {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// sh runs a shell command as a user and returns what it printed and how it ended.
func (g guest) sh(t *testing.T, user, command string) (string, guestclient.Ended) {
	t.Helper()
	var out strings.Builder
	var end guestclient.Ended
	err := g.Start(t.Context(), guestclient.Command{Cmd: "/bin/bash", Args: []string{"-c", command}, User: user, Timeout: time.Minute}, func(e guestclient.Event) error {
		switch e := e.(type) {
		case guestclient.Output:
			out.Write(e.Data)
		case guestclient.Ended:
			end = e
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v (printed %q)", command, err, out.String())
	}
	return strings.TrimSpace(out.String()), end
}

// want runs a command as root and expects what it prints.
func (g guest) want(t *testing.T, command, want string) {
	t.Helper()
	if got, _ := g.sh(t, "root", command); got != want {
		t.Errorf("%s: printed %q, want %q", command, got, want)
	}
}

func startGivesARunningGuest(t *testing.T, env Env) {
	g := env.start(t, "conformboot")
	g.want(t, "hostname", "conformboot")
	g.want(t, "id -u", "0")
	g.want(t, "cat /proc/1/comm", "envd")
	g.want(t, "echo x > /etc/written && cat /etc/written", "x")
	g.want(t, "ls "+mountPoint, "envd")
	g.want(t, "echo x 2>/dev/null > "+mountPoint+"/f || echo refused", "refused")
	g.want(t, "test -w /dev/null && test -w /dev/shm && test -c /dev/ptmx && echo devices", "devices")
	g.want(t, "cat /proc/self/mountinfo | grep -c '"+env.RootFS+"' || true", "0")
}

func twoOfOneImageAreApart(t *testing.T, env Env) {
	before, err := os.Stat(env.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	a, b := env.start(t, "conformone"), env.start(t, "conformtwo")
	a.want(t, "echo mine > /root/f && cat /root/f", "mine")
	b.want(t, "cat /root/f 2>/dev/null || echo absent", "absent")
	after, err := os.Stat(env.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	if !before.ModTime().Equal(after.ModTime()) || before.Size() != after.Size() {
		t.Error("the image was written to")
	}
}

func diskIsLimited(t *testing.T, env Env) {
	g := env.start(t, "conformdisk")
	out, _ := g.sh(t, "root", fmt.Sprintf("dd if=/dev/zero of=/root/big bs=1M count=%d 2>&1 | grep -o 'No space left on device'; rm /root/big; echo alive", 2*diskMB))
	if out != "No space left on device\nalive" {
		t.Errorf("writing beyond the disk printed %q", out)
	}
}

// A guest that goes beyond its memory loses the process that took it, or ends as a whole
// and says so; it never goes on growing.
func memoryIsLimited(t *testing.T, env Env) {
	g, other := env.start(t, "conformhog"), env.start(t, "conformcalm")
	exits := make(chan runtime.Exit, 1)
	go func() {
		if exit, err := env.Driver.Wait(t.Context(), "conformhog"); err == nil {
			exits <- exit
		}
	}()
	hog := guestclient.Command{Cmd: "python3", Args: []string{"-c", "b=bytearray()\nwhile True: b.extend(b'x'*(1<<24))"}, Timeout: endWait}
	var end guestclient.Ended
	err := g.Start(t.Context(), hog, func(e guestclient.Event) error { end, _ = e.(guestclient.Ended); return nil })
	if err == nil {
		// The kernel kills what runs the process's code. A runtime that was just bringing in
		// a page for it can put that nowhere, and tells the process of a bad access instead.
		if end.Signal != "SIGKILL" && end.Signal != "SIGSEGV" || end.TimedOut {
			t.Errorf("the process that took too much ended with %+v", end)
		}
		g.want(t, "echo usable", "usable")
	} else {
		select {
		case exit := <-exits:
			if !exit.OutOfMemory {
				t.Error("a sandbox that was killed for memory does not say so")
			}
		case <-time.After(endWait):
			t.Errorf("the command was cut off (%v) and the sandbox goes on", err)
		}
	}
	other.want(t, "echo fine", "fine")
}

// forkBomb starts processes until that is refused, says so, and ends them.
const forkBomb = `
import os, signal
n = 0
try:
    while n < 600:
        os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        n += 1
    print("never refused", flush=True)
except BlockingIOError:
    print("refused", flush=True)
os.killpg(0, signal.SIGKILL)
`

func forkBombIsHeld(t *testing.T, env Env) {
	g := env.start(t, "conformbomb")
	out, end := g.sh(t, "root", "exec python3 -c '"+forkBomb+"'")
	if out != "refused" || end.Signal != "SIGKILL" {
		t.Errorf("600 processes with a limit of 64: printed %q, ended with %+v", out, end)
	}
	g.want(t, "echo usable", "usable")
}

func rootMayChangeUser(t *testing.T, env Env) {
	g := env.start(t, "conformsudo")
	if out, _ := g.sh(t, "wrenn-user", "id -un; sudo -n id -un; pwd"); out != "wrenn-user\nroot\n/home/wrenn-user" {
		t.Errorf("printed %q", out)
	}
}

func waitSeesDestroy(t *testing.T, env Env) {
	env.start(t, "conformend")
	done := make(chan error, 1)
	go func() {
		exit, err := env.Driver.Wait(t.Context(), "conformend")
		if err == nil && exit.OutOfMemory {
			err = errors.New("an ordinary end is reported as out of memory")
		}
		done <- err
	}()
	env.destroy(t, "conformend")
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(endWait):
		t.Error("Wait goes on after the sandbox has ended")
	}
}

func waitEndsWithItsContext(t *testing.T, env Env) {
	env.start(t, "conformwait")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := env.Driver.Wait(ctx, "conformwait"); done <- err }()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("wait returned %v", err)
		}
	case <-time.After(endWait):
		t.Error("Wait does not end with its context")
	}
	if _, err := env.Driver.Wait(t.Context(), "conformunknown"); err != nil {
		t.Errorf("an unknown id has not ended: %v", err)
	}
}

func destroyOfUnknownIsNoError(t *testing.T, env Env) {
	if err := env.Driver.Destroy(t.Context(), "conformnever"); err != nil {
		t.Error(err)
	}
}

func failedStartLeavesNothing(t *testing.T, env Env) {
	namespace, _ := env.Namespace(t)
	for name, broken := range map[string]func(*runtime.Spec){
		"no image":     func(s *runtime.Spec) { s.RootFS = filepath.Join(t.TempDir(), "none.erofs") },
		"no program":   func(s *runtime.Spec) { s.Args = []string{"/no/such/program"} },
		"no namespace": func(s *runtime.Spec) { s.Namespace = "/run/netns/wrenn-none" },
		"no mount":     func(s *runtime.Spec) { s.Mounts[0].Source = filepath.Join(t.TempDir(), "none") },
	} {
		spec := env.spec("conformbroken", namespace)
		broken(&spec)
		if err := env.Driver.Start(t.Context(), spec); err == nil {
			t.Errorf("%s: started", name)
			env.destroy(t, spec.ID)
		}
		env.expectNothing(t, spec.ID)
	}
}

func cancelledStartLeavesNothing(t *testing.T, env Env) {
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 90 * time.Millisecond} {
		namespace, _ := env.Namespace(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := env.Driver.Start(ctx, env.spec("conformcut", namespace))
		cancel()
		if err == nil {
			env.destroy(t, "conformcut") // it was quicker than the cut
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cut off after %v: %v", after, err)
		}
		env.expectNothing(t, "conformcut")
	}
}

func endedSandboxCanBeDestroyed(t *testing.T, env Env) {
	env.start(t, "conformtwice")
	for range 2 {
		env.destroy(t, "conformtwice")
	}
}

func listKnowsRunningAndNotTheEnded(t *testing.T, env Env) {
	env.start(t, "conformlist")
	for _, running := range []bool{true, false} {
		ids, err := env.Driver.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(ids, "conformlist") != running {
			t.Errorf("running is %v, list is %v", running, ids)
		}
		env.destroy(t, "conformlist")
	}
}
