package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// errDestroyed is why an operation ends when its sandbox is destroyed meanwhile, and why
// the streams of a destroyed sandbox end.
var (
	errDestroyed      = fault.New(fault.Conflict, "the sandbox was destroyed meanwhile")
	errStreamOfKilled = fault.New(fault.AgentError, "the sandbox was destroyed")
)

// ending ends a run: the runtime goes first, since it uses the rest. While it cannot be
// ended the slot must not go to another sandbox.
type ending struct {
	operation
	e      *entry
	slot   slotEnd
	reason error // of the streams' end
}

// slotEnd is what becomes of the network slot of a run that ends.
type slotEnd int

const (
	releaseSlot slotEnd = iota
	// parkSlot is for a sandbox that may come back with its connections.
	parkSlot
)

var endPhases = []phase[*ending]{
	{"runtime", "end the runtime", (*ending).endRuntime},
	{"slot", "give the network slot back", (*ending).giveSlotBack},
}

func (d *ending) endRuntime(ctx context.Context) error {
	r := d.e.run
	if r == nil {
		return nil
	}
	if err := d.s.meter.Untrack(d.e.sandbox.ID); err != nil {
		d.s.cfg.Log.Warn("keep what a sandbox has used", "sandbox", d.e.sandbox.ID, "error", err)
	}
	if r.guest != nil {
		r.guest.CloseFor(d.reason)
	}
	return d.s.cfg.Runtime.Destroy(ctx, r.id)
}

func (d *ending) giveSlotBack(ctx context.Context) error {
	slots, r, slot := d.s.cfg.Network, d.e.run, d.e.slot
	giveBack := slots.Release
	if d.slot == parkSlot {
		giveBack = slots.Park // no harm to one that is parked already
	}
	if slot.Link != "" {
		// One that is not ours any more is left alone.
		if err := giveBack(ctx, slot); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	if r != nil && r.place != nil {
		r.place.leave()
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.e.run = nil // the record learns of it with what the sandbox is then
	return nil
}

// endRun ends what there is of an entry's run, as part of an operation of that name.
func (s *Service) endRun(ctx context.Context, e *entry, name string, slot slotEnd, reason error) error {
	d := &ending{operation: operation{s: s, name: name}, e: e, slot: slot, reason: reason}
	return carryOut(ctx, &d.operation, d, endPhases)
}

var destroyPhases = []phase[*ending]{
	{"record", "note the end", func(d *ending, _ context.Context) error {
		d.s.set(d.e, func(st *state) { st.untaken = "" })
		return nil
	}},
	endPhases[0], endPhases[1],
	{"snapshot", "remove what it could be resumed from", (*ending).removeSnapshots},
}

func (d *ending) removeSnapshots(context.Context) error {
	for _, id := range []string{d.e.snapshot, d.e.draft} {
		if err := d.s.removeSnapshot(id); err != nil {
			return err
		}
	}
	return nil
}

// Destroy ends a sandbox in any state and forgets it. What is under way with it is cut off.
// An unknown id is fault.NotFound. Several callers at once all wait for the one end.
func (s *Service) Destroy(ctx context.Context, id string) error {
	for {
		s.mu.Lock()
		e, err := s.find(id)
		if err != nil {
			s.mu.Unlock()
			return err
		}
		settled, busy := e.busy()
		if !busy {
			if err := require(e.sandbox, actDestroy); err != nil {
				s.mu.Unlock()
				return err // a state that should not last
			}
			_, done := e.begin(ctx, actDestroy)
			s.mu.Unlock()
			return s.destroy(ctx, e, done)
		}
		if e.sandbox.Status != Stopping {
			e.cancel(errDestroyed)
		}
		s.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
			return ctx.Err()
		}
		// A create that was cut off, or another destroy, has removed it.
		if _, err := s.Get(id); fault.Is(err, fault.NotFound) {
			return nil
		}
	}
}

// destroy ends an entry that the caller works on. It goes through even when the caller goes
// away: half a destroy is of no use to anybody.
func (s *Service) destroy(ctx context.Context, e *entry, done func()) error {
	defer done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	d := &ending{operation: operation{s: s, name: "destroy"}, e: e, reason: errStreamOfKilled}
	if err := carryOut(ctx, &d.operation, d, destroyPhases); err != nil {
		s.finish(e, Failed, "the sandbox could not be ended; deleting it again tries once more")
		return fmt.Errorf("destroy sandbox: %w", err)
	}
	if err := s.meter.Forget(e.sandbox.ID); err != nil {
		s.cfg.Log.Warn("forget what a sandbox has used", "sandbox", e.sandbox.ID, "error", err)
	}
	closed := s.isClosed()
	s.set(e, func(st *state) {
		st.sandbox.Status = Stopped
		if closed {
			st.sandbox.Reason = "the host agent was stopped"
		}
	})
	d.at("stopped")
	s.forget(e)
	d.log(e.sandbox.ID)
	return nil
}

// follow looks after a run that has just begun, until it ends.
func (s *Service) follow(e *entry, r *run) {
	s.meter.Track(e.sandbox.ID)
	s.watchers.Go(func() { s.watch(e, r) })
}

// watch waits for a run to end by itself, and then gives back what it held. The sandbox
// stays known, with the reason, until somebody destroys it or resumes it from its pause.
func (s *Service) watch(e *entry, r *run) {
	exit, ended := s.awaitEnd(r.id)
	if !ended {
		return
	}
	_, done := s.claimRun(e, r, actEnd)
	if done == nil {
		return // ended on purpose
	}
	defer done()
	s.fail(e, whyEnded(e.sandbox, exit))
}

// claimRun makes the caller the one who works on an entry for the sake of its run, in the
// background; nil when somebody has ended that on purpose, or will not have it any more.
func (s *Service) claimRun(e *entry, r *run, act action) (op context.Context, done func()) {
	for {
		s.mu.Lock()
		if e.run != r {
			s.mu.Unlock()
			return nil, nil
		}
		settled, busy := e.busy()
		if !busy {
			if e.require(act) == nil && (act == actEnd || !s.closed) {
				op, done = e.begin(s.life, act)
			}
			s.mu.Unlock()
			return op, done
		}
		s.mu.Unlock()
		select {
		case <-settled:
		case <-s.life.Done():
			return nil, nil
		}
	}
}

func whyEnded(sb Sandbox, exit runtime.Exit) string {
	switch {
	case exit.OutOfTasks:
		return "too many processes: the sandbox started more than its host allows it"
	case exit.OutOfMemory:
		return fmt.Sprintf("out of memory: the sandbox went beyond its %d MB", sb.Resources.MemoryMB)
	}
	return "the sandbox ended unexpectedly"
}

// fail ends an entry that the caller works on and that does not run any more, or must not.
func (s *Service) fail(e *entry, reason string) {
	if !e.sandbox.PausedAt.IsZero() {
		reason += "; it can be resumed from its pause of " + e.sandbox.PausedAt.UTC().Format(time.RFC3339)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), undoTimeout)
	defer cancel()
	failed := func(st *state) { st.sandbox.Status, st.sandbox.Reason, st.untaken = Failed, reason, "" }
	if err := s.note(e, failed, s.records.quick); err != nil {
		s.cfg.Log.Error("note the end of a sandbox", "sandbox", e.sandbox.ID, "error", err)
	}
	if err := s.endRun(ctx, e, "end", releaseSlot, fault.New(fault.AgentError, "the sandbox has ended: %s", reason)); err != nil {
		s.cfg.Log.Error("give back what an ended sandbox held", "sandbox", e.sandbox.ID, "error", err)
	}
	s.finish(e, Failed, reason)
	s.at("end.failed")
	s.cfg.Log.Warn("sandbox ended by itself", "sandbox", e.sandbox.ID, "reason", reason)
}

// awaitEnd waits for a run to end by itself; false when the Service is closed first.
func (s *Service) awaitEnd(id string) (runtime.Exit, bool) {
	for {
		exit, err := s.cfg.Runtime.Wait(s.life, id)
		if err == nil {
			return exit, true
		}
		if s.life.Err() == nil {
			s.cfg.Log.Error("watch sandbox", "sandbox", id, "error", err)
		}
		select {
		case <-s.life.Done():
			return runtime.Exit{}, false
		case <-time.After(watchRetry):
		}
	}
}

// watchRetry is how long a watch that failed, such as for want of file descriptors, waits.
const watchRetry = 5 * time.Second

// finish puts a sandbox into a last state.
func (s *Service) finish(e *entry, status Status, reason string) {
	s.set(e, func(st *state) { st.sandbox.Status, st.sandbox.Reason, st.untaken = status, reason, "" })
}

// forget removes every trace of a sandbox that holds nothing any more.
func (s *Service) forget(e *entry) {
	e.telling.Lock()
	defer e.telling.Unlock()
	s.mu.Lock()
	delete(s.entries, e.sandbox.ID)
	s.mu.Unlock()
	if err := s.records.remove(e.sandbox.ID); err != nil {
		s.cfg.Log.Error("remove record", "sandbox", e.sandbox.ID, "error", err)
	}
	s.changes.forget(e.sandbox.ID)
}

func (s *Service) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// OnStop says what becomes of the sandboxes that run when their Service is closed.
type OnStop string

// What may become of them.
const (
	// StopKeep leaves them running, for the next Service to take over.
	StopKeep OnStop = "keep"
	// StopPause pauses them; one that cannot be paused runs on.
	StopPause OnStop = "pause"
	// StopKill destroys them. Those that are paused stay.
	StopKill OnStop = "kill"
)

// Close stops the Service. What is under way is cut off and undone, and new operations are
// refused at once.
func (s *Service) Close(ctx context.Context, how OnStop) error {
	var errs []error
	s.mu.Lock()
	s.stopping = true // or what begins now would be neither paused nor cut off
	s.mu.Unlock()
	if how == StopPause {
		errs = append(errs, s.each(s.ids(Running), func(id string) error { _, err := s.Pause(ctx, id); return err }))
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	errs = append(errs, s.warm.close(ctx), s.settle(ctx))
	if how == StopKill {
		errs = append(errs, s.each(s.ids(Running, Failed), func(id string) error { return s.killOne(ctx, id) }))
	}
	s.end()
	s.watchers.Wait()
	s.mu.Lock()
	for _, e := range s.entries {
		if e.run != nil && e.run.guest != nil {
			e.run.guest.CloseFor(errStopping)
		}
	}
	s.mu.Unlock()
	s.changes.close()
	return errors.Join(errs...)
}

// killOne destroys a sandbox unless its state is on the disk.
func (s *Service) killOne(ctx context.Context, id string) error {
	s.mu.Lock()
	e, err := s.find(id)
	spared := err == nil && e.sandbox.Status == Failed && !e.sandbox.PausedAt.IsZero() && e.untaken == ""
	s.mu.Unlock()
	if err == nil && !spared {
		err = s.Destroy(ctx, id)
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// settle cuts off what is under way with any sandbox and waits until it is undone.
func (s *Service) settle(ctx context.Context) error {
	return s.each(s.ids(statuses...), func(id string) error {
		s.mu.Lock()
		e := s.entries[id]
		if e == nil {
			s.mu.Unlock()
			return nil
		}
		settled, busy := e.busy()
		if busy && e.sandbox.Status != Stopping {
			e.cancel(errStopping)
		}
		s.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-settled:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}
