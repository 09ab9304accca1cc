package sandbox

import (
	"context"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// pauseTime and resumeTime bound what a host may take, whether anybody still waits for
	// the answer or not: gigabytes go to the disk and come back from it.
	pauseTime  = 15 * time.Minute
	resumeTime = 5 * time.Minute
	// drainTime is how long requests that are under way may take to end before a pause goes
	// on without them. With it a pause by a clock still begins within a second.
	drainTime = 800 * time.Millisecond
)

// Pause writes a running sandbox down and answers when it is safe. It goes on when its
// caller goes away: a sandbox that is half paused helps nobody.
func (s *Service) Pause(ctx context.Context, id string) (Sandbox, error) {
	return s.pause(ctx, id, func(ctx context.Context) (bool, error) {
		return s.store.SetStatus(ctx, id, Pausing, "", now(), Running)
	})
}

// pause is Pause with what makes the sandbox's status Pausing, or reports that it may not.
func (s *Service) pause(ctx context.Context, id string, begin func(context.Context) (bool, error)) (Sandbox, error) {
	defer s.claim(ctx, id)()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTime)
	defer cancel()
	began, err := begin(ctx)
	if err != nil {
		return Sandbox{}, err
	}
	sb, err := s.store.Get(ctx, id)
	if err != nil {
		return Sandbox{}, err
	}
	if !began {
		return Sandbox{}, sb.refuse("only a running sandbox can be paused")
	}
	s.activity.sealBusy(id)
	defer s.activity.unseal(id)
	s.activity.drain(ctx, id, drainTime)

	h, err := s.host.Pause(ctx, id)
	if err != nil {
		s.settle(ctx, id, "it could not be paused: "+fault.MessageOf(err))
		return Sandbox{}, &refused{err}
	}
	sb = s.activity.overlay(sb)
	sb = sb.as(h)
	return s.arrived(ctx, sb, Pausing, "paused")
}

// Resume brings a paused sandbox back, waiting for room on its host for at most wait, and
// answers when it is usable. Like Pause it goes on without its caller.
func (s *Service) Resume(ctx context.Context, id string, wait time.Duration) (Sandbox, error) {
	if err := checkWait(wait); err != nil {
		return Sandbox{}, err
	}
	defer s.claim(ctx, id)()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTime+wait)
	defer cancel()
	sb, err := s.store.Get(ctx, id)
	if err != nil {
		return Sandbox{}, err
	}
	if !sb.resumable() {
		return Sandbox{}, sb.refuse("only a paused sandbox can be resumed")
	}
	began, err := s.store.SetStatus(ctx, id, Resuming, "", now(), sb.Status)
	if err != nil {
		return Sandbox{}, err
	}
	if !began {
		return Sandbox{}, fault.New(fault.InvalidState, "sandbox %q is being resumed or deleted already", id)
	}
	h, err := s.host.Resume(ctx, id, wait)
	if err != nil {
		s.settle(ctx, id, "")
		return Sandbox{}, err
	}
	sb.Status = Resuming
	sb, err = s.arrived(ctx, sb.as(h), Resuming, "resumed")
	s.rearmClocks()
	return sb, err
}

// arrived writes down where an action has brought a sandbox.
func (s *Service) arrived(ctx context.Context, sb Sandbox, from Status, what string) (Sandbox, error) {
	ok, err := s.store.Save(ctx, sb, from)
	if err != nil {
		return Sandbox{}, err
	}
	if !ok {
		return Sandbox{}, fault.New(fault.Conflict, "sandbox %q was deleted while it was being %s", sb.ID, what)
	}
	return s.Get(ctx, sb.ID)
}
