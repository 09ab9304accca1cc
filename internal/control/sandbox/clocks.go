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
	// busy is looked at again. With it the end of a command that nobody here follows is seen
	// soon enough for the pause that follows from it to come within a second of its time.
	busyWait = 700 * time.Millisecond
	// failedWait is how long an end that could not even begin is not tried again.
	failedWait = 30 * time.Second
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

// clocks pauses or ends sandboxes whose deadline or idle timeout has passed.
type clocks struct {
	*Service
	now func() time.Time
	// work is the ends and probes under way. A guest that does not answer holds up
	// nothing but its own.
	work sync.WaitGroup

	mu sync.Mutex
	// late is the sandboxes that are past one of their times.
	late map[string]*lateWatch
}

// lateWatch is what is known of a sandbox that is past one of its times.
type lateWatch struct {
	probing bool // somebody asks the guest now
	ending  bool // somebody pauses or ends it now
	// wasBusy is whether it was busy when last asked: its idle time then begins when it
	// is first seen at rest.
	wasBusy bool
	mute    int // probes in a row without an answer
	// notBefore is when a pause that failed may be tried again, and refused what is known of
	// those that the host could not carry out.
	notBefore time.Time
	refused   refusals
}

func newClocks(s *Service) *clocks {
	return &clocks{Service: s, now: now, late: make(map[string]*lateWatch)}
}

func (s *Service) runClocks(ctx context.Context) {
	c := newClocks(s)
	defer c.work.Wait()
	c.greet(ctx)
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

// greet begins the idle time of every sandbox anew: while no server ran nobody could use one,
// or ping it.
func (c *clocks) greet(ctx context.Context) {
	timed, err := c.store.List(ctx, Filter{Status: Running, Timed: true})
	if err != nil && ctx.Err() == nil {
		c.log.ErrorContext(ctx, "could not begin the idle times of the sandboxes anew", "error", err)
	}
	for _, sb := range timed {
		c.activity.touch(sb.ID)
	}
}

// pass pauses and ends what is due and returns when to look again.
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
		sb = c.activity.overlay(sb)
		at, deadline := sb.end()
		due := time.Time{}
		if deadline {
			due = at
		}
		if later := c.notBefore(sb, due); later.After(at) {
			at = later
		}
		left := at.Sub(c.now())
		switch {
		case left > 0:
			wait = min(wait, left)
		case deadline:
			c.activity.sealBusy(sb.ID)
			c.expire(ctx, sb, fmt.Sprintf("its deadline of %d s passed", int64(sb.Deadline/time.Second)))
			wait = min(wait, busyWait) // it may come to nothing
		default:
			c.endIfAtRest(ctx, sb)
			wait = min(wait, busyWait)
		}
	}
	return max(wait, time.Millisecond)
}

// lateLocked returns what is known of a sandbox to be changed. The caller holds c.mu.
func (c *clocks) lateLocked(id string) *lateWatch {
	w := c.late[id]
	if w == nil {
		w = &lateWatch{}
		c.late[id] = w
	}
	return w
}

// forgetOthers drops what is known of sandboxes that are no longer among those with a
// time of their own.
func (c *clocks) forgetOthers(timed []Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, w := range c.late {
		if !w.ending && !slices.ContainsFunc(timed, func(sb Sandbox) bool { return sb.ID == id }) {
			delete(c.late, id)
		}
	}
}

// endIfAtRest asks the guest, without waiting for it here, and ends a sandbox in which
// nothing has run since its idle timeout passed.
func (c *clocks) endIfAtRest(ctx context.Context, sb Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.lateLocked(sb.ID)
	if w.probing || w.ending {
		return
	}
	w.probing = true
	c.work.Go(func() {
		probe, cancel := context.WithTimeout(ctx, probeTime)
		running, err := c.processes.List(probe, sb.ID)
		cancel()
		c.mu.Lock()
		atRest := c.judge(w, sb, foreground(running), err)
		w.probing = false
		c.mu.Unlock()
		if atRest && c.activity.seal(sb.ID, sb.LastActiveAt) {
			c.expire(ctx, sb, fmt.Sprintf("it was idle for its timeout of %d s", int64(sb.Timeout/time.Second)))
		}
	})
}

// foreground counts the processes that keep a sandbox awake.
func foreground(running []Process) int {
	n := 0
	for _, p := range running {
		if !p.Background {
			n++
		}
	}
	return n
}

// expire does with a sandbox, which is sealed, what is to be done when its time has come,
// and ends the seal.
func (c *clocks) expire(ctx context.Context, sb Sandbox, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.lateLocked(sb.ID)
	if w.ending {
		c.activity.unseal(sb.ID)
		return
	}
	w.ending = true
	end := c.kill
	if sb.OnTimeout == Pause {
		end = c.pauseLate
	}
	c.work.Go(func() {
		defer c.activity.unseal(sb.ID)
		again := end(context.WithoutCancel(ctx), sb, reason)
		c.mu.Lock()
		defer c.mu.Unlock()
		w.ending = false
		w.notBefore = c.now().Add(again)
	})
}

// judge says whether a sandbox is at rest after a probe. When that cannot be told it says
// no for a while: a sandbox that lives too long is a smaller harm than lost work. The
// caller holds c.mu.
func (c *clocks) judge(w *lateWatch, sb Sandbox, running int, err error) bool {
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

// kill ends a sandbox and keeps its row with the reason. It returns how long to leave it
// alone when that could not even begin.
func (c *clocks) kill(ctx context.Context, sb Sandbox, reason string) (again time.Duration) {
	ctx, cancel := detached(ctx)
	defer cancel()
	ok, err := c.store.Expire(ctx, sb, Stopping, reason, now())
	if err != nil {
		c.log.ErrorContext(ctx, "could not end a sandbox; trying again", "sandbox", sb.ID, "error", err)
		return failedWait
	}
	if !ok {
		return 0 // somebody else pauses or ends it, or has set its clocks
	}
	if err := c.finish(ctx, sb.ID, reason); err != nil {
		c.log.ErrorContext(ctx, "could not end a sandbox; trying again when the host is back", "sandbox", sb.ID, "error", err)
		return 0
	}
	c.log.InfoContext(ctx, "ended a sandbox", "sandbox", sb.ID, "reason", reason)
	return 0
}

// finish takes a sandbox that is Stopping to its end.
func (s *Service) finish(ctx context.Context, id, reason string) error {
	if err := s.destroy(ctx, id); err != nil {
		return err
	}
	_, err := s.store.SetStatus(ctx, id, Stopped, reason, now(), Stopping)
	return err
}
