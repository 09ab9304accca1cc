package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// adoption is the taking over of a run.
type adoption struct {
	operation
	e *entry
}

// adoptPhases are its steps. Each is harmless when it was not needed, since nobody knows how
// far a pause, a snapshot, the undoing of one, or another adoption had come.
var adoptPhases = []phase[*adoption]{
	{"network", "take over its network", func(a *adoption, ctx context.Context) error {
		r := a.e.run
		if r.guest == nil {
			r.guest = newGuest(r, a.e.origin.Token)
			r.place = a.s.room.force(demand{memoryMB: a.e.sandbox.Resources.MemoryMB})
		}
		err := a.s.cfg.Network.Adopt(ctx, r.slot)
		if fault.Is(err, fault.NotFound) {
			err = errors.Join(errNoNetwork, err)
		}
		if err != nil {
			return err
		}
		return a.s.cfg.Network.SetRate(ctx, r.slot, a.s.cfg.NetworkRate, a.s.cfg.NetworkRate)
	}},
	{"thaw", "let it go on", func(a *adoption, ctx context.Context) error { return a.s.cfg.Runtime.Thaw(ctx, a.e.run.id) }},
	{"unhold", "let its network go on", func(a *adoption, ctx context.Context) error {
		return a.s.cfg.Network.Unhold(ctx, a.e.run.slot)
	}},
	{"init", "wake the guest", func(a *adoption, ctx context.Context) error { a.s.wake(ctx, a.e); return nil }},
}

// What could not be taken over is tried again after takeOverRetry, then after twice that and
// so on, up to takeOverRetryMost.
const (
	takeOverRetry     = 500 * time.Millisecond
	takeOverRetryMost = 30 * time.Second
)

// takeOver goes on with a sandbox that was running, or being paused, when its host agent
// ended. When that fails it is left as it is, in error, and tried again in the background:
// a start never ends what runs.
func (s *Service) takeOver(ctx context.Context, e *entry, was Status) {
	if s.tryTakeOver(ctx, e, was) != nil {
		r := e.run
		s.watchers.Go(func() { s.takeOverLater(e, r) })
	}
}

// tryTakeOver brings the sandbox into a state that lasts: it runs, or has ended.
func (s *Service) tryTakeOver(ctx context.Context, e *entry, was Status) error {
	if e.run == nil { // cannot be; but a record may say anything
		s.endFound(ctx, e, was, runtime.Exit{})
		return nil
	}
	if exit, ended := s.hasEnded(ctx, e.run.id); ended {
		s.endFound(ctx, e, was, exit)
		return nil
	}
	a := &adoption{operation: operation{s: s, name: "adopt"}, e: e}
	if err := carryOut(ctx, &a.operation, a, adoptPhases); err != nil {
		s.leaveUntaken(e, was, err)
		return err
	}
	draft := e.draft
	s.set(e, func(st *state) { st.sandbox.Status, st.sandbox.Reason, st.draft, st.untaken = Running, "", "", "" })
	s.follow(e, e.run)
	a.at("running")
	a.log(e.sandbox.ID)
	s.removeOld(e, draft)
	return nil
}

// takeOverLater tries again until it works, the run has ended, or nobody wants it any more. A
// run without a network is paused instead.
func (s *Service) takeOverLater(e *entry, r *run) {
	for wait := takeOverRetry; ; wait = min(2*wait, takeOverRetryMost) {
		s.pass(r.id, wait)
		if s.life.Err() != nil {
			return
		}
		ctx, done := s.claimRun(e, r, actAdopt)
		if done == nil {
			return
		}
		was := e.untaken
		try, cancel := context.WithTimeout(ctx, launchTimeout)
		err := s.tryTakeOver(try, e, was)
		cancel()
		if errors.Is(err, errNoNetwork) {
			err = s.rescue(ctx, e, was)
		}
		done()
		if err == nil {
			return
		}
	}
}

// pass lets a time pass, which the end of the run or of the Service cuts short.
func (s *Service) pass(id string, d time.Duration) {
	ctx, cancel := context.WithTimeout(s.life, d)
	defer cancel()
	if _, err := s.cfg.Runtime.Wait(ctx, id); err != nil {
		<-ctx.Done()
	}
}

// endedWait is how long hasEnded waits for the end of what may have ended already.
const endedWait = 50 * time.Millisecond

// hasEnded says whether a run has ended. One that ends in this moment is seen later.
func (s *Service) hasEnded(ctx context.Context, id string) (runtime.Exit, bool) {
	ctx, cancel := context.WithTimeout(ctx, endedWait)
	defer cancel()
	exit, err := s.cfg.Runtime.Wait(ctx, id)
	return exit, err == nil
}

// endFound ends a sandbox whose run ended while nobody looked: it is paused, when its pause
// had come so far that it was safe.
func (s *Service) endFound(ctx context.Context, e *entry, was Status, exit runtime.Exit) {
	if was == Pausing {
		if snap, err := s.cfg.Snapshots.Get(e.draft); err == nil && snap.Damaged == "" {
			former := e.snapshot
			s.setDurable(e, func(st *state) {
				st.sandbox.Status, st.sandbox.Reason, st.untaken = Paused, "", ""
				st.sandbox.PausedAt, st.sandbox.SnapshotBytes = snap.CreatedAt, snap.Bytes
				st.snapshot, st.draft = snap.ID, former
			})
			s.putToRest(ctx, e)
			s.removeOld(e, former)
			return
		}
	}
	reason := whyEnded(e.sandbox, exit)
	if exit == (runtime.Exit{}) {
		reason = "the sandbox ended while its host's agent was not running; the host may have been restarted"
	}
	s.fail(e, reason)
}

// removeOld removes a snapshot of a sandbox that nothing needs any more, if there is one.
func (s *Service) removeOld(e *entry, id string) {
	if err := s.removeSnapshot(id); err != nil { // the next start tries again
		s.cfg.Log.Error("remove a snapshot that a sandbox does not need", "sandbox", e.sandbox.ID, "snapshot", id, "error", err)
	}
}
