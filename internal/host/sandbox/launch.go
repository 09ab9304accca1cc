package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

const (
	// launchTimeout bounds how long a sandbox may take until it is usable; the slowest
	// machine that is still of use needs a few seconds.
	launchTimeout = 60 * time.Second
	// One that goes on from a snapshot may take longer by what the slowest disk that is still
	// of use takes to read that, in bytes per second, up to about what control waits.
	slowestDisk       = 16 * mib
	launchTimeoutMost = 5*time.Minute - 5*time.Second

	// guestDir is where the guest daemon is seen inside a sandbox.
	guestDir = "/run/wrenn/bin"

	// A guest may have a process for each 2 MiB of its memory, within these bounds. The
	// smallest process costs 0.6 MiB, a shell 1 MiB: a fork bomb runs into this limit,
	// inside the guest, before it fills the memory.
	memoryPerProcessMB = 2
	minProcesses       = 128
	maxProcesses       = 4096
)

// launchTime bounds how long a sandbox may take that goes on from a snapshot of so many
// bytes; 0 is for an image.
func launchTime(bytes int64) time.Duration {
	return min(launchTimeout+time.Duration(bytes/slowestDisk)*time.Second, launchTimeoutMost)
}

// launch brings a run into being: it boots an image or goes on from a snapshot. It is a
// part of every operation that does so.
type launch struct {
	operation
	id        string // for the runtime
	hostname  string
	resources Resources
	origin    origin
	// snapshot is the one to go on from; empty: boot the image. Its guest expects formerToken.
	snapshot    string
	formerToken string
	// trusted is whether the snapshot has been verified already.
	trusted bool
	// parked is the slot that the sandbox had when it was paused; zero: none.
	parked network.Slot

	run *run // filled in on the way
	// slot is told as soon as there is a slot; it may be nil.
	slot func(*run)

	dir      string     // of the snapshot's files
	verified chan error // gets the one result of verifying them; nil: there is no snapshot
	release  func()     // ends the use of the snapshot
}

// launchPhases are its steps. After them the guest answers, but does not know who it is.
var launchPhases = []phase[*launch]{
	{"snapshot", "open the snapshot", (*launch).openSnapshot},
	{"slot", "take a network slot", (*launch).takeSlot},
	{"runtime", "start the runtime", (*launch).startRuntime},
	{"guest", "wait for the guest", (*launch).awaitGuest},
}

// start brings the run into being. When it returns, it does not use the snapshot any more.
func (l *launch) start(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		if l.verified != nil {
			for range l.verified {
			}
			l.release()
		}
	}()
	return carryOut(ctx, &l.operation, l, launchPhases)
}

// openSnapshot begins to verify the snapshot, which goes on while the rest is prepared.
func (l *launch) openSnapshot(ctx context.Context) error {
	if l.snapshot == "" {
		return nil
	}
	dir, release, err := l.s.cfg.Snapshots.Use(l.snapshot)
	if err != nil {
		return err
	}
	l.dir, l.release, l.verified = dir, release, make(chan error, 1)
	go func() {
		defer close(l.verified)
		if !l.trusted {
			l.verified <- l.s.cfg.Snapshots.Verify(ctx, l.snapshot)
		}
	}()
	return nil
}

func (l *launch) takeSlot(ctx context.Context) error {
	slots := l.s.cfg.Network
	giveBack := slots.Release
	var slot network.Slot
	var err error
	if l.parked.Link != "" {
		giveBack = slots.Park
		slot, err = slots.Unpark(ctx, l.parked)
	} else {
		slot, err = slots.Acquire(ctx)
	}
	if err != nil {
		return err
	}
	l.onFailure(func(ctx context.Context) error { return giveBack(ctx, slot) })
	l.run.slot = slot
	if l.slot != nil {
		l.slot(l.run)
	}
	if l.snapshot != "" {
		// A network without its connections yet would reset them.
		if err := slots.Hold(ctx, slot); err != nil {
			return err
		}
	}
	if rate := l.s.cfg.NetworkRate; rate > 0 {
		return slots.SetRate(ctx, slot, rate, rate)
	}
	return nil
}

func (l *launch) startRuntime(ctx context.Context) error {
	image, err := l.s.imageNow(l.origin)
	if err != nil {
		return err
	}
	daemon, err := l.s.guestDirNow(l.origin)
	if err != nil {
		return err
	}
	r := l.resources
	processes := min(max(r.MemoryMB/memoryPerProcessMB, minProcesses), maxProcesses)
	spec := runtime.Spec{
		ID:        l.id,
		Hostname:  l.hostname,
		RootFS:    image,
		Args:      []string{guestDir + "/" + guestProgram, "--pids-max", strconv.Itoa(processes), "--forward-interface", "eth0"},
		Env:       []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Mounts:    []runtime.Mount{{Source: daemon, Target: guestDir}},
		Namespace: l.run.slot.Namespace,
		Limits:    runtime.Limits{VCPUs: r.VCPUs, MemoryMB: r.MemoryMB, DiskMB: r.DiskMB, Processes: processes},
	}
	if l.snapshot != "" {
		spec.Checkpoint = l.dir
		spec.BeforeRestore = func(ctx context.Context) error {
			select {
			case err := <-l.verified:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	// Registered before the start: a start that was cut off may have left something.
	l.onFailure(func(ctx context.Context) error { return l.s.cfg.Runtime.Destroy(ctx, l.id) })
	return l.s.cfg.Runtime.Start(ctx, spec)
}

// awaitGuest makes the client of the guest and waits until that answers.
func (l *launch) awaitGuest(ctx context.Context) error {
	guest := newGuest(l.run, l.origin.Token)
	l.onFailure(func(context.Context) error { guest.Close(); return nil })
	if l.snapshot != "" {
		if err := l.s.cfg.Network.Unhold(ctx, l.run.slot); err != nil {
			return err
		}
	}
	ctx, stop := l.s.whileRunning(ctx, l.id)
	defer stop()
	if err := guest.WaitReady(ctx); err != nil {
		if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			err = errors.Join(errDeaf, err)
		}
		return errors.Join(context.Cause(ctx), err)
	}
	l.run.guest = guest
	l.run.place.arrive()
	return nil
}

// errDeaf is of a guest that runs and does not answer.
var errDeaf = fault.New(fault.DeadlineExceeded, "the sandbox started, but the daemon in it did not answer in time: "+
	"something in it had stopped the daemon or taken its network down before it was written down, or the host is overloaded; "+
	"try again, or go on from an earlier snapshot")

// errEnded is why nobody waits any longer for a guest that is gone.
var errEnded = fault.New(fault.AgentError, "the sandbox ended meanwhile")

// whileRunning returns a context that ends with the run: a guest that has died never
// answers.
func (s *Service) whileRunning(ctx context.Context, run string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.watchers.Go(func() {
		if _, err := s.cfg.Runtime.Wait(ctx, run); err == nil {
			cancel(errEnded)
		}
	})
	return ctx, func() { cancel(nil) }
}

// introduce tells the guest who it is from now on, which also wakes it.
func (l *launch) introduce(ctx context.Context, e *entry) error {
	ctx, stop := l.s.whileRunning(ctx, l.id)
	defer stop()
	guest := l.run.guest
	if l.formerToken != "" && l.formerToken != l.origin.Token {
		// Who knows the token of the one that was written down may give it another.
		guest = newGuest(l.run, l.formerToken)
		defer guest.Close()
	}
	if err := guest.Init(ctx, l.s.identity(e, l.origin, l.run)); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("init: %w", err))
	}
	return nil
}

// newGuest returns a client of the guest of a run.
func newGuest(r *run, token string) *guestclient.Client {
	return guestclient.New(&net.TCPAddr{IP: r.slot.Guest.Addr().AsSlice(), Port: guestclient.Port}, token)
}

// identity is what a guest is told. The record learns with the state that follows when that
// was: it is later than what was told before, also when the clock was set back since.
func (s *Service) identity(e *entry, o origin, r *run) guestclient.Init {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, now := e.sandbox, time.Now()
	if next := e.told.Add(time.Millisecond); now.Before(next) {
		now = next
	}
	e.told = now
	return guestclient.Init{
		AccessToken: o.Token, SandboxID: sb.ID, TemplateID: sb.Template, Hostname: sb.ID,
		Nameservers: []string{r.slot.Gateway.String()}, EnvVars: o.Env, DefaultUser: o.DefaultUser, Timestamp: now,
	}
}
