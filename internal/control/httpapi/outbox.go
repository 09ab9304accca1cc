package httpapi

import (
	"sync"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
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
}

func (o *outbox) init() { o.changed.L = &o.mu }

// put adds an item, waiting for room. It reports whether the outbox is still open.
func (o *outbox) put(it item) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed && len(o.waiting) > 0 &&
		(len(o.waiting) >= maxWaitingEvents || o.bytes+len(it.event.Data) > maxWaitingBytes) {
		o.changed.Wait()
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

// close wakes both sides and drops what waits.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.waiting = true, nil
	o.changed.Broadcast()
}
