package sandbox

import (
	"context"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Timeouts is what is to change of a sandbox's clocks; what is nil or empty stays.
type Timeouts struct {
	Timeout   *time.Duration
	Deadline  *time.Duration
	OnTimeout OnTimeout
}

// settable is the statuses in which clocks can be set. Those of a sandbox that does not
// run begin with its resume.
var settable = []Status{Pending, Starting, Running, Pausing, Paused, Resuming, Error}

// SetTimeouts sets a sandbox's clocks anew, counting from now, whether that is sooner or
// later than before.
func (s *Service) SetTimeouts(ctx context.Context, id string, t Timeouts) (Sandbox, error) {
	before, err := s.store.Get(ctx, id)
	if err != nil {
		return Sandbox{}, err
	}
	if t.Timeout != nil {
		if err := checkPeriod("timeout_sec", *t.Timeout); err != nil {
			return Sandbox{}, err
		}
	}
	if t.Deadline != nil {
		if err := checkPeriod("deadline_sec", *t.Deadline); err != nil {
			return Sandbox{}, err
		}
	}
	// The activity first: with the new timeout and the old activity its time might be over.
	s.activity.touch(id)
	set, err := s.clocks.SetClocks(ctx, id, t, now(), settable...)
	if err != nil {
		return Sandbox{}, err
	}
	if !set {
		return Sandbox{}, fault.New(fault.InvalidState, "sandbox %q has ended, and so have its clocks", id)
	}
	if before.Status == Running && before.Reason != "" {
		// It says what became of the clocks as they were.
		if _, err := s.store.SetStatus(ctx, id, Running, "", now(), Running); err != nil {
			return Sandbox{}, err
		}
	}
	s.rearmClocks()
	return s.Get(ctx, id)
}
