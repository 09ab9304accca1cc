package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// refusedWait is how long a sandbox is left alone that could not be paused, and twice as
	// long after each further time, up to refusedWaitMost: each try makes it stand still.
	refusedWait     = 30 * time.Second
	refusedWaitMost = 10 * time.Minute
	// refusedGrace is how long a sandbox may outlive its deadline because there is something
	// in it that cannot be written down. It is long enough for somebody to read of it.
	refusedGrace = 24 * time.Hour
)

// refusals is the pauses of a sandbox by a clock that failed, one after the other.
type refusals struct {
	count       int
	first, last time.Time
	// deadline is what had passed; zero: it was idle.
	deadline time.Time
}

// over reports whether they say nothing of what is due now: the sandbox was used since, or
// got another deadline.
func (r *refusals) over(sb Sandbox, deadline time.Time) bool {
	if !r.deadline.Equal(deadline) {
		return true
	}
	return deadline.IsZero() && sb.LastActiveAt.After(r.last)
}

// add counts one more.
func (r *refusals) add(at, deadline time.Time) {
	if r.count == 0 {
		r.first, r.deadline = at, deadline
	}
	r.count++
	r.last = at
}

// wait is how long to wait for the next try.
func (r *refusals) wait() time.Duration {
	d := refusedWait
	for i := 1; i < r.count && d < refusedWaitMost; i++ {
		d *= 2
	}
	return min(d, refusedWaitMost)
}

// ends is when the sandbox is ended without being written down; zero: never.
func (r *refusals) ends(err error) time.Time {
	if r.deadline.IsZero() || fault.Is(err, fault.NoSpace) || fault.Is(err, fault.HostUnavailable) {
		return time.Time{} // the host's fault is not to be the sandbox's end
	}
	return r.first.Add(refusedGrace)
}

// refused is what the host says of a pause that it tried.
type refused struct{ error }

func (r *refused) Unwrap() error { return r.error }

// pauseLate pauses a sandbox. It returns how long to leave it alone when that failed.
func (c *clocks) pauseLate(ctx context.Context, sb Sandbox, reason string) (again time.Duration) {
	_, err := c.pause(ctx, sb.ID, func(ctx context.Context) (bool, error) {
		return c.store.Expire(ctx, sb, Pausing, reason, now())
	})
	switch {
	case err == nil:
		c.log.InfoContext(ctx, "paused a sandbox", "sandbox", sb.ID, "reason", reason)
		return 0
	case fault.Is(err, fault.NotFound), fault.Is(err, fault.Conflict):
		return 0 // it was deleted
	case errors.As(err, new(*refused)):
		return c.refuse(ctx, sb, reason, err)
	case fault.Is(err, fault.InvalidState):
		return busyWait // it is paused by somebody else, being written down for a copy, or has other clocks now
	}
	c.log.ErrorContext(ctx, "could not pause a sandbox whose time has come; trying again", "sandbox", sb.ID, "wait", failedWait, "error", err)
	return failedWait
}

// refuse is what becomes of a sandbox that its host could not pause: it runs on and says
// why, and when its deadline has passed long enough ago it is ended.
func (c *clocks) refuse(ctx context.Context, sb Sandbox, reason string, err error) (again time.Duration) {
	at, deadline := c.now(), time.Time{}
	if due, isDeadline := sb.end(); isDeadline {
		deadline = due
	}
	c.mu.Lock()
	w := c.lateLocked(sb.ID)
	w.refused.add(at, deadline)
	r := w.refused
	c.mu.Unlock()

	wait, note := r.wait(), fmt.Sprintf("it runs on although %s, since it could not be paused (tries: %d): %s", reason, r.count, fault.MessageOf(err))
	if ends := r.ends(err); !ends.IsZero() {
		if !at.Before(ends) {
			return c.killLate(ctx, sb.ID, deadline, fmt.Sprintf("%s, and for %v it could not be paused: %s", reason, refusedGrace, fault.MessageOf(err)))
		}
		wait = min(wait, ends.Sub(at))
		note += fmt.Sprintf("; if it still cannot, and its deadline is not moved, it is ended at %s", ends.UTC().Format(time.RFC3339))
	}
	c.log.ErrorContext(ctx, "could not pause a sandbox whose time has come; trying again", "sandbox", sb.ID, "tries", r.count, "wait", wait, "error", err)
	if _, err := c.store.SetStatus(ctx, sb.ID, Running, note, now(), Running); err != nil {
		c.log.ErrorContext(ctx, "could not write down why a sandbox runs on", "sandbox", sb.ID, "error", err)
	}
	return wait
}

// killLate is kill of a sandbox after a try to pause it, unless it got another deadline.
func (c *clocks) killLate(ctx context.Context, id string, deadline time.Time, reason string) (again time.Duration) {
	sb, err := c.store.Get(ctx, id)
	if err != nil {
		c.log.ErrorContext(ctx, "could not end a sandbox; trying again", "sandbox", id, "error", err)
		return failedWait
	}
	if due, isDeadline := sb.end(); !isDeadline || !due.Equal(deadline) {
		return 0
	}
	return c.kill(ctx, sb, reason)
}

// notBefore is when a sandbox may be paused or ended at the earliest, after that failed.
// deadline is the one that is due; zero: it is idle.
func (c *clocks) notBefore(sb Sandbox, deadline time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.late[sb.ID]
	if w == nil {
		return time.Time{}
	}
	if w.refused.count > 0 && w.refused.over(sb, deadline) {
		w.refused, w.notBefore = refusals{}, time.Time{}
	}
	return w.notBefore
}
