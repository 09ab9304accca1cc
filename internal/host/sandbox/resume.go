package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// resuming is a resume under way.
type resuming struct {
	launch
	e    *entry
	need demand
	wait time.Duration
	// noted is closed when the disk knows, but for noteErr, that the sandbox is about to
	// run; nil before anything of that has begun.
	noted   chan struct{}
	noteErr error
}

var (
	beforeResume = []phase[*resuming]{
		{"record", "note that it is resumed", (*resuming).note},
		{"leftovers", "end its former run", (*resuming).endFormer},
		{"room", "find room on the host", (*resuming).takeRoom},
	}
	afterResume = []phase[*resuming]{
		{"init", "tell the guest who it is", func(r *resuming, ctx context.Context) error { return r.introduce(ctx, r.e) }},
		{"noted", "note that it is resumed", (*resuming).awaitNote},
	}
)

// Resume brings a sandbox back from its pause, or from the one before it failed, and answers
// when it is usable. When it fails the sandbox is as it was. wait is how long to wait for
// room on a host that is full.
func (s *Service) Resume(ctx context.Context, id string, wait time.Duration) (Sandbox, error) {
	e, ctx, done, err := s.claim(ctx, id, actResume)
	if err != nil {
		return Sandbox{}, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, launchTime(e.sandbox.SnapshotBytes)+wait)
	defer cancel()
	r := &resuming{e: e, wait: wait}
	defer func() {
		if r.noted != nil {
			<-r.noted // or it would write a record over what comes next
		}
	}()
	r.launch = launch{
		operation: operation{s: s, name: "resume"}, id: id, hostname: id, resources: e.sandbox.Resources, origin: e.origin,
		snapshot: e.snapshot, formerToken: e.origin.Token, parked: e.slot, run: &run{id: id},
	}
	if err := r.make(ctx); err != nil {
		return Sandbox{}, r.putBack(ctx, fmt.Errorf("resume sandbox: %w", err))
	}
	s.set(e, func(st *state) {
		st.sandbox.Status, st.sandbox.Reason = Running, ""
		st.sandbox.StartedAt, st.sandbox.LastActiveAt = time.Now(), time.Now()
	})
	s.follow(e, r.run)
	r.at("running")
	r.log(id)
	return s.Get(id)
}

func (r *resuming) make(ctx context.Context) error {
	if err := carryOut(ctx, &r.operation, r, beforeResume); err != nil {
		return err
	}
	r.slot = r.gotSlot
	r.onFailure(func(context.Context) error { r.s.show(r.e, func(st *state) { st.run = nil }); return nil })
	if err := r.start(ctx); err != nil {
		return err
	}
	return carryOut(ctx, &r.operation, r, afterResume)
}

// endFormer ends what could not be ended when the sandbox was paused, or failed.
func (r *resuming) endFormer(ctx context.Context) error {
	return r.s.endRun(ctx, r.e, "former", parkSlot, errPaused)
}

func (r *resuming) takeRoom(ctx context.Context) error {
	r.need = restoreDemand(r.resources, r.e.sandbox.SnapshotBytes)
	at, err := r.s.makeRoom(ctx, r.need, r.wait)
	if err != nil {
		return err
	}
	r.onFailure(func(context.Context) error { at.leave(); return nil })
	r.run.place = at
	return nil
}

// note lets watchers know that the sandbox is on its way. The record still says where from:
// a quick word in its place could cost both when power is lost.
func (r *resuming) note(context.Context) error {
	r.s.show(r.e, func(*state) {})
	return nil
}

// gotSlot lets the disk know that the sandbox is about to run, while the rest is done: after
// a loss of power nobody must take its pause for its latest state without a word. Whoever
// finds the record as it was before that, finds the run by the runtime's list.
func (r *resuming) gotSlot(run *run) {
	s, e := r.s, r.e
	s.show(e, func(st *state) {
		st.run, st.slot = run, run.slot
		st.sandbox.HostIP, st.sandbox.GuestIP = run.slot.Gateway.String(), run.slot.Guest.Addr().String()
	})
	r.noted = make(chan struct{})
	go func() {
		defer close(r.noted)
		r.noteErr = s.note(e, func(*state) {}, s.records.durable)
	}()
}

func (r *resuming) awaitNote(ctx context.Context) error {
	select {
	case <-r.noted:
		return r.noteErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// putBack undoes a resume that failed.
func (r *resuming) putBack(ctx context.Context, err error) error {
	s, e := r.s, r.e
	if undoErr := r.rollBack(ctx); undoErr != nil {
		// What is left is ended before the next resume.
		s.cfg.Log.Error("undo resume", "sandbox", e.sandbox.ID, "error", undoErr)
	}
	r.at("undone")
	s.setDurable(e, func(st *state) { st.sandbox = resumed(e, st.sandbox) })
	if fault.Is(err, fault.NotFound) {
		return fault.Wrap(err, fault.Internal, "what sandbox %s can be resumed from is not on the host's disk any more", e.sandbox.ID)
	}
	return err
}
