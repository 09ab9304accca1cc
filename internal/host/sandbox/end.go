package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// errDestroyed is why a create ends when its sandbox is destroyed meanwhile.
var errDestroyed = fault.New(fault.Conflict, "the sandbox was destroyed while it was being created")

// Destroy ends a sandbox in any state and forgets it. A create in flight is cut off. An
// unknown id is fault.NotFound. Several callers at once all wait for the one end.
func (s *Service) Destroy(ctx context.Context, id string) error {
	for {
		s.mu.Lock()
		e, err := s.find(id)
		if err != nil {
			s.mu.Unlock()
			return err
		}
		if require(e.sandbox, actDestroy) == nil {
			done := s.beginEnd(e)
			s.mu.Unlock()
			return s.destroy(ctx, e, done)
		}
		if e.sandbox.Status == Starting {
			e.cancel(errDestroyed)
		}
		settled := e.settled
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

// beginEnd makes the caller, who holds s.mu, the one who ends an entry. The caller closes
// the channel when that is done.
func (s *Service) beginEnd(e *entry) (done chan struct{}) {
	e.sandbox.Status = Stopping
	e.settled = make(chan struct{})
	return e.settled
}

// destroy ends an entry that is Stopping and owned by the caller. It goes through even
// when the caller goes away: half a destroy is of no use to anybody.
func (s *Service) destroy(ctx context.Context, e *entry, done chan struct{}) error {
	defer close(done)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	s.set(e, func(*Sandbox) {})
	if err := s.release(ctx, e); err != nil {
		s.finish(e, Failed, "the sandbox could not be ended; deleting it again tries once more")
		return fmt.Errorf("destroy sandbox: %w", err)
	}
	s.set(e, func(sb *Sandbox) {
		sb.Status = Stopped
		if s.closed {
			sb.Reason = "the host agent was stopped"
		}
	})
	s.forget(e)
	s.cfg.Log.Info("sandbox destroyed", "sandbox", e.sandbox.ID)
	return nil
}

// release gives back what a sandbox still holds. The runtime goes first: it uses the
// rest, so while it cannot be ended the slot must not go to another sandbox.
func (s *Service) release(ctx context.Context, e *entry) error {
	if !e.held {
		return nil
	}
	if err := s.cfg.Runtime.Destroy(ctx, e.sandbox.ID); err != nil {
		return err
	}
	if e.guest != nil {
		e.guest.Close()
	}
	if err := s.cfg.Network.Release(ctx, e.slot); err != nil {
		return err
	}
	e.held = false
	return nil
}

// watch waits for a sandbox to end by itself, and then gives back what it held. It stays
// known, with the reason, until somebody destroys it.
func (s *Service) watch(e *entry) {
	exit, ended := s.awaitEnd(e.sandbox.ID)
	if !ended {
		return
	}
	s.mu.Lock()
	if require(e.sandbox, actEnd) != nil {
		s.mu.Unlock()
		return // destroyed on purpose
	}
	done := s.beginEnd(e)
	s.mu.Unlock()
	defer close(done)

	status, reason := Failed, "the sandbox ended unexpectedly"
	switch {
	case exit.OutOfTasks:
		reason = "too many processes: the sandbox started more than its host allows it"
	case exit.OutOfMemory:
		reason = fmt.Sprintf("out of memory: the sandbox went beyond its %d MB", e.sandbox.Resources.MemoryMB)
	}
	ctx, cancel := context.WithTimeout(s.life, undoTimeout)
	defer cancel()
	if err := s.release(ctx, e); err != nil {
		s.cfg.Log.Error("give back what an ended sandbox held", "sandbox", e.sandbox.ID, "error", err)
	}
	s.finish(e, status, reason)
	s.cfg.Log.Warn("sandbox ended by itself", "sandbox", e.sandbox.ID, "reason", reason)
}

// awaitEnd waits for a sandbox to end by itself; false when the Service is closed first.
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
	s.set(e, func(sb *Sandbox) { sb.Status, sb.Reason = status, reason })
}

// forget removes every trace of a sandbox that holds nothing any more.
func (s *Service) forget(e *entry) {
	s.mu.Lock()
	delete(s.entries, e.sandbox.ID)
	s.mu.Unlock()
	if err := s.records.remove(e.sandbox.ID); err != nil {
		s.cfg.Log.Error("remove record", "sandbox", e.sandbox.ID, "error", err)
	}
	s.changes.forget(e.sandbox.ID)
}

// Close destroys all sandboxes and stops the Service. New creates are refused at once.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	ids := make([]string, 0, len(s.entries))
	for id := range s.entries {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	err := s.each(ids, func(id string) error {
		if err := s.Destroy(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return nil
	})
	s.end()
	s.watchers.Wait()
	s.changes.close()
	return err
}

// parallelEnds is how many sandboxes are ended at once.
const parallelEnds = 8
