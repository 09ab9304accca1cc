package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// clockWait bounds how long the clocks sleep, and so how late they notice what
	// another process wrote to the database.
	clockWait = 10 * time.Second
	// busyWait is how often a sandbox that has outlived its idle timeout because it is
	// busy is looked at again.
	busyWait = 2 * time.Second
)

// rearmClocks makes the clocks look at the sandboxes now.
func (s *Service) rearmClocks() {
	select {
	case s.rearm <- struct{}{}:
	default: // it is already asked for
	}
}

// clocks ends sandboxes whose deadline or idle timeout has passed. It belongs to one
// goroutine.
//
// Only on_timeout kill is enforced: a host cannot pause sandboxes yet, and to kill one
// whose owner asked for a pause would lose its work. Until it can, such a sandbox stays
// running after its time.
type clocks struct {
	*Service
	// wasBusy is the sandboxes that were busy past their idle timeout: their idle time
	// begins when they are first seen at rest.
	wasBusy map[string]bool
	ending  sync.WaitGroup
}

func (s *Service) runClocks(ctx context.Context) {
	c := clocks{Service: s, wasBusy: make(map[string]bool)}
	defer c.ending.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.rearm:
		}
		timer.Reset(c.pass(ctx))
	}
}

// pass ends what is due and returns when to look again.
func (c *clocks) pass(ctx context.Context) time.Duration {
	timed, err := c.store.List(ctx, Filter{Status: Running, Timed: true})
	if err != nil {
		if ctx.Err() == nil {
			c.log.ErrorContext(ctx, "could not look for sandboxes whose time has come; trying again", "error", err)
		}
		return clockWait
	}
	wait := clockWait
	for _, sb := range timed {
		if sb.OnTimeout != Kill {
			continue
		}
		sb = c.activity.overlay(sb)
		at, deadline := sb.end()
		left := time.Until(at)
		switch {
		case left > 0:
			wait = min(wait, left)
		case deadline:
			c.kill(ctx, sb, fmt.Sprintf("its deadline of %d s passed", int64(sb.Deadline/time.Second)))
		case c.atRest(ctx, sb) && c.activity.seal(sb.ID, sb.LastActiveAt):
			c.kill(ctx, sb, fmt.Sprintf("it was idle for its timeout of %d s", int64(sb.Timeout/time.Second)))
		default:
			wait = min(wait, busyWait)
		}
	}
	return max(wait, time.Millisecond)
}

// atRest reports whether nothing has run in the sandbox since its idle timeout passed.
// When it cannot tell it says no: a sandbox that lives too long is a smaller harm than
// lost work.
func (c *clocks) atRest(ctx context.Context, sb Sandbox) bool {
	running, err := c.processes.List(ctx, sb.ID)
	if err != nil {
		c.log.WarnContext(ctx, "could not tell whether a sandbox is idle", "sandbox", sb.ID, "error", err)
		return false
	}
	if len(running) > 0 || c.activity.busy(sb.ID) {
		c.wasBusy[sb.ID] = true
		return false
	}
	if c.wasBusy[sb.ID] {
		delete(c.wasBusy, sb.ID)
		c.activity.touch(sb.ID)
		return false
	}
	return true
}

// kill ends a sandbox and keeps its row with the reason. It does not wait for the host:
// one that hangs must not hold up the others.
func (c *clocks) kill(ctx context.Context, sb Sandbox, reason string) {
	ctx, cancel := detached(ctx)
	ok, err := c.store.SetStatus(ctx, sb.ID, Stopping, reason, now(), Running)
	if err != nil || !ok {
		cancel()
		c.activity.unseal(sb.ID)
		if err != nil {
			c.log.ErrorContext(ctx, "could not end a sandbox; trying again", "sandbox", sb.ID, "error", err)
		}
		return
	}
	c.ending.Go(func() {
		defer cancel()
		defer c.activity.unseal(sb.ID)
		if err := c.finish(ctx, sb.ID, reason); err != nil {
			c.log.ErrorContext(ctx, "could not end a sandbox; trying again when the host is back", "sandbox", sb.ID, "error", err)
			return
		}
		c.log.InfoContext(ctx, "ended a sandbox", "sandbox", sb.ID, "reason", reason)
	})
}

// finish takes a sandbox that is Stopping to its end.
func (s *Service) finish(ctx context.Context, id, reason string) error {
	if err := s.destroy(ctx, id); err != nil {
		return err
	}
	_, err := s.store.SetStatus(ctx, id, Stopped, reason, now(), Stopping)
	return err
}
