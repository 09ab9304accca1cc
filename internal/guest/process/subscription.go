package process

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Bounds of what waits for one subscriber. Whichever is reached first makes the process
// wait. A hundred commands that print into slow readers at once have to fit into the
// daemon's memory limit: beyond it the collector takes the time that the output needs.
const (
	maxPendingEvents = 256
	maxPendingBytes  = 512 << 10
)

// stallLimit is how long a subscriber may take nothing at all while output waits for it.
// Until then it slows the process, as a terminal does; then it is cut off, so that a
// client which is stuck cannot hold a process for ever. Time in which the sandbox is paused
// does not count.
const stallLimit = 30 * time.Second

// sharedLimit is how long a subscriber may make others wait in all, until it has taken
// everything that there is for it. One that reads a little now and then would otherwise
// hold a shared terminal for stallLimit at each piece of output, and somebody sits at it.
const sharedLimit = 10 * time.Second

// Subscription is one reader's view of a process: its output from the moment of
// subscribing, then its end. Next is for one goroutine; Close is safe from any. It must be
// closed.
type Subscription struct {
	// ready, room and joined each hold one token: there may be an event to take, there may
	// be room for another, there may be another subscriber.
	ready, room, joined chan struct{}
	gone                chan struct{}
	stall               time.Duration       // stallLimit, and
	shared              time.Duration       // sharedLimit, but for tests
	leave               func(*Subscription) // takes it off the process's list
	replayed            int                 // bytes that it began with
	begins              *Position           // in the output; nil: it begins with more than that

	mu      sync.Mutex
	pending []Event
	bytes   int
	held    time.Duration // for which it has made others wait since it had taken everything
	over    error         // set: nothing is accepted any more, and Next returns it when pending is empty
}

func newSubscription(leave func(*Subscription)) *Subscription {
	return &Subscription{
		ready:  make(chan struct{}, 1),
		room:   make(chan struct{}, 1),
		joined: make(chan struct{}, 1),
		gone:   make(chan struct{}),
		stall:  stallLimit,
		shared: sharedLimit,
		leave:  leave,
	}
}

// begin makes events the first that the subscription brings, and at the place in the output
// where they begin, if there is one.
func (s *Subscription) begin(events []Event, at *Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending, s.begins = events, at
	for _, ev := range events {
		s.bytes += len(ev.Data)
	}
	s.replayed = s.bytes
	if len(events) > 0 {
		give(s.ready)
	}
}

// Replayed returns how many bytes of the output that Next brings are of before.
func (s *Subscription) Replayed() int { return s.replayed }

// Begins returns where in the process's output that which Next brings begins. There is no
// such place for a Replay, which sets the modes of a terminal too.
func (s *Subscription) Begins() (at Position, ok bool) {
	if s.begins == nil {
		return Position{}, false
	}
	return *s.begins, true
}

// Next returns the next event. After Ended it returns io.EOF. If nothing comes for idle it
// returns an Idle event; an idle of zero waits for ever.
func (s *Subscription) Next(ctx context.Context, idle time.Duration) (Event, error) {
	var silence alarm
	defer silence.stop()
	for {
		if ev, ok, err := s.take(); ok || err != nil {
			return ev, err
		}
		select {
		case <-s.ready:
		case <-silence.after(idle):
			return Event{Kind: Idle}, nil
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

func (s *Subscription) take() (Event, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		return Event{}, false, s.over
	}
	ev := s.pending[0]
	s.pending[0] = Event{}
	if s.pending = s.pending[1:]; len(s.pending) == 0 {
		s.pending, s.held = nil, 0
	}
	s.bytes -= len(ev.Data)
	give(s.room)
	return ev, true, nil
}

// Close ends the subscription; the process no longer waits for it.
func (s *Subscription) Close() {
	s.leave(s)
	s.finish(io.EOF)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range s.pending {
		ev.Release()
	}
	s.pending, s.bytes = nil, 0
}

// push hands an event over, waiting for room; shared says whether there are other
// subscribers, who wait as well. It takes over the caller's reference and says whether the
// subscriber is still there.
func (s *Subscription) push(ev Event, shared func() bool) bool {
	accepted, over := s.offer(ev)
	if accepted || over {
		return accepted
	}
	limit, others := s.stall, shared()
	if others {
		limit = min(limit, s.patience())
	}
	var stalled countdown
	stalled.start(limit)
	defer func() { stalled.stop() }()
	for !accepted && !over {
		select {
		case <-s.room:
		case <-s.gone:
		case <-s.joined:
			// Who comes back because the connection of before hangs is not to wait for it
			// as long as one that nobody is kept by.
			if !others && shared() {
				stalled.stop()
				limit, others = min(stalled.remaining(), s.patience()), true
				stalled = countdown{}
				stalled.start(limit)
			}
		case <-stalled.timer.C:
			if stalled.over() {
				s.finish(s.tooSlow(others))
			}
		}
		accepted, over = s.offer(ev)
	}
	if others {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held += limit - stalled.remaining()
	}
	return accepted
}

// patience is how long it may still make others wait.
func (s *Subscription) patience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.shared-s.held)
}

// tooSlow is the error of a subscription that is cut off.
func (s *Subscription) tooSlow(others bool) error {
	if others {
		return fault.New(fault.RateLimited,
			"others waited %v for this reader of the output, so the stream was ended; the process goes on, connect again", s.shared)
	}
	return fault.New(fault.RateLimited,
		"the output was not read for %v, so the stream was ended; the process goes on", s.stall)
}

// offer puts ev into the queue if there is room. When the subscription is over it lets go
// of ev.
func (s *Subscription) offer(ev Event) (accepted, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over != nil {
		ev.Release()
		return false, true
	}
	if !s.fits(ev) {
		return false, false
	}
	s.pending = append(s.pending, ev)
	s.bytes += len(ev.Data)
	give(s.ready)
	if s.fits(Event{}) {
		// Another writer may be waiting for room, and there is only one token.
		give(s.room)
	}
	if ev.Kind == Ended {
		s.endLocked(io.EOF)
	}
	return true, false
}

// fits says whether ev has room. The end always has, and a piece of output always fits
// into an empty queue.
func (s *Subscription) fits(ev Event) bool {
	if ev.Kind == Ended || len(s.pending) == 0 {
		return true
	}
	return len(s.pending) < maxPendingEvents && s.bytes+len(ev.Data) <= maxPendingBytes
}

// finish ends the subscription with err, which Next returns after what is pending.
func (s *Subscription) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

func (s *Subscription) endLocked(err error) {
	if s.over != nil {
		return
	}
	s.over = err
	close(s.gone)
	give(s.ready)
}

// alarm is a timer that is made when it is first waited for: mostly nothing has to be
// waited for.
type alarm struct{ timer *time.Timer }

// after returns a channel that gets a value d after the first call; never if d is 0.
func (a *alarm) after(d time.Duration) <-chan time.Time {
	if d <= 0 {
		return nil
	}
	if a.timer == nil {
		a.timer = time.NewTimer(d)
	}
	return a.timer.C
}

func (a *alarm) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

func give(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default:
	}
}
