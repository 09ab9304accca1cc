package httpapi

import (
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Bounds of what waits in an outbox. Whichever is reached first makes the process wait.
const (
	maxWaitingEvents = 256
	maxWaitingBytes  = 512 << 10
)

// item is an event of a process, or the error with which its events ended.
type item struct {
	event sandbox.Event
	err   error
}

// outbox holds what a process did until its client takes it: while one message is on its
// way the next pieces gather and become one message, and reading and sending go on side by
// side. One goroutine puts and one takes.
type outbox struct {
	mu      sync.Mutex
	changed sync.Cond
	waiting []item
	bytes   int
	closed  bool
	// patience is how long a process waits for a client that takes nothing, and moved is
	// when that one took something last.
	patience time.Duration
	moved    time.Time
}

func (o *outbox) init(patience time.Duration) { o.changed.L, o.patience = &o.mu, patience }

// put adds an item, waiting for room. It reports whether there was any: not once the
// outbox is closed, nor when the client took nothing for too long, which is the last that
// it is then told.
func (o *outbox) put(it item) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	began := time.Time{}
	for !o.closed && len(o.waiting) > 0 &&
		(len(o.waiting) >= maxWaitingEvents || o.bytes+len(it.event.Data) > maxWaitingBytes) {
		if began.IsZero() {
			began = time.Now()
		}
		since := began
		if o.moved.After(began) {
			since = o.moved
		}
		left := o.patience - time.Since(since)
		if left <= 0 {
			o.waiting = append(o.waiting, item{err: notRead(o.patience)})
			return false
		}
		wake := time.AfterFunc(left, o.wake)
		o.changed.Wait()
		wake.Stop()
	}
	if o.closed {
		return false
	}
	o.waiting = append(o.waiting, it)
	o.bytes += len(it.event.Data)
	o.changed.Broadcast()
	return true
}

// take waits for items and returns all that there are, nil when the outbox was closed. It
// uses the memory of used, which it returned before, again.
func (o *outbox) take(used []item) []item {
	clear(used) // do not keep alive what was sent
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed && len(o.waiting) == 0 {
		o.changed.Wait()
	}
	if o.closed {
		return nil
	}
	taken := o.waiting
	o.waiting, o.bytes = used[:0], 0
	o.changed.Broadcast()
	return taken
}

// wake makes both sides look again.
func (o *outbox) wake() {
	o.mu.Lock() // or it would come to nothing between a look and the wait for the next one
	defer o.mu.Unlock()
	o.changed.Broadcast()
}

// progress notes that the client has taken something.
func (o *outbox) progress() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moved = time.Now()
}

func notRead(patience time.Duration) error {
	return fault.New(fault.RateLimited,
		"the output was not read for %v, so the stream was ended; the process goes on, connect again", patience)
}

// close wakes both sides and drops what waits.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.waiting = true, nil
	o.changed.Broadcast()
}
