package sandbox

import (
	"context"
	"fmt"
	"slices"
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
	// probeTime bounds how long a guest may take to say what runs in it.
	probeTime = 5 * time.Second
	// muteProbes is how many times in a row a guest may not say so before it counts as at
	// rest: one that never answers must not live for ever.
	muteProbes = 30
)

// rearmClocks makes the clocks look at the sandboxes now.
func (s *Service) rearmClocks() {
	select {
	case s.rearm <- struct{}{}:
	default: // it is already asked for
	}
}

// clocks ends sandboxes whose deadline or idle timeout has passed.
//
// Only on_timeout kill is enforced: a host cannot pause sandboxes yet, and to kill one
// whose owner asked for a pause would lose its work. Until it can, such a sandbox stays
// running after its time.
type clocks struct {
	*Service
	// work is the ends and probes under way. A guest that does not answer holds up
	// nothing but its own.
	work sync.WaitGroup

	mu sync.Mutex
	// idle is the sandboxes that are past their idle timeout.
	idle map[string]*idleWatch
}

// idleWatch is what is known of a sandbox that is past its idle timeout.
type idleWatch struct {
	probing bool // somebody asks the guest now
	// wasBusy is whether it was busy when last asked: its idle time then begins when it
	// is first seen at rest.
	wasBusy bool
	mute    int // probes in a row without an answer
}

func (s *Service) runClocks(ctx context.Context) {
	c := &clocks{Service: s, idle: make(map[string]*idleWatch)}
	defer c.work.Wait()
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
	c.forgetOthers(timed)
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
		default:
			c.endIfAtRest(ctx, sb)
			wait = min(wait, busyWait)
		}
	}
	return max(wait, time.Millisecond)
}

// forgetOthers drops what is known of sandboxes that are no longer among those with a
// time of their own.
func (c *clocks) forgetOthers(timed []Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.idle {
		if !slices.ContainsFunc(timed, func(sb Sandbox) bool { return sb.ID == id }) {
			delete(c.idle, id)
		}
	}
}

// endIfAtRest asks the guest, without waiting for it here, and ends a sandbox in which
// nothing has run since its idle timeout passed.
func (c *clocks) endIfAtRest(ctx context.Context, sb Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.idle[sb.ID]
	if w == nil {
		w = &idleWatch{}
		c.idle[sb.ID] = w
	}
	if w.probing {
		return
	}
	w.probing = true
	c.work.Go(func() {
		probe, cancel := context.WithTimeout(ctx, probeTime)
		running, err := c.processes.List(probe, sb.ID)
		cancel()
		c.mu.Lock()
		atRest := c.judge(w, sb, len(running), err)
		w.probing = false
		c.mu.Unlock()
		if atRest && c.activity.seal(sb.ID, sb.LastActiveAt) {
			c.kill(ctx, sb, fmt.Sprintf("it was idle for its timeout of %d s", int64(sb.Timeout/time.Second)))
		}
	})
}

// judge says whether a sandbox is at rest after a probe. When that cannot be told it says
// no for a while: a sandbox that lives too long is a smaller harm than lost work. The
// caller holds c.mu.
func (c *clocks) judge(w *idleWatch, sb Sandbox, running int, err error) bool {
	if err != nil {
		w.mute++
		if w.mute == 1 || w.mute == muteProbes {
			c.log.Warn("could not tell whether a sandbox is idle", "sandbox", sb.ID, "probes", w.mute, "error", err)
		}
		return w.mute >= muteProbes && !c.activity.busy(sb.ID)
	}
	w.mute = 0
	if running > 0 || c.activity.busy(sb.ID) {
		w.wasBusy = true
		return false
	}
	if w.wasBusy {
		w.wasBusy = false
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
	c.work.Go(func() {
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
