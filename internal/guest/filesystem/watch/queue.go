package watch

import (
	"sync"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Bounds of the events that wait for somebody to take them. The daemon's memory is the
// sandbox's, and a watcher may be slow or gone. A burst of ten thousand new files, each
// with two or three events, fits with room.
const (
	maxQueued      = 1 << 16
	maxQueuedBytes = 8 << 20 // of names
)

// queue holds events until they are taken. It is safe for concurrent use.
type queue struct {
	// ready has a value when there may be something to take.
	ready chan struct{}

	mu     sync.Mutex
	events []Event
	bytes  int   // of the names in events
	lost   bool  // some were dropped, and nobody has been told
	end    error // why nothing will come any more
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// put adds an event. Many writes to one file in a row are one.
func (q *queue) put(ev Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.events); n > 0 && q.events[n-1] == ev && (ev.Op == Write || ev.Op == Chmod) {
		return
	}
	if len(q.events) == maxQueued || q.bytes+len(ev.Name) > maxQueuedBytes {
		q.drop()
	}
	q.events = append(q.events, ev)
	q.bytes += len(ev.Name)
	q.wake()
}

// lose says that events are missing. Those that wait go too: whoever hears of the loss has
// to look for itself what is there.
func (q *queue) lose() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop()
	q.wake()
}

// drop is lose with mu held.
func (q *queue) drop() {
	q.events, q.bytes, q.lost = nil, 0, true
}

// finish says that nothing will come after what is there.
func (q *queue) finish(reason error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.end = reason
	q.wake()
}

// take returns what there is: a loss, or else events, or else the end.
func (q *queue) take() ([]Event, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.lost:
		q.lost = false
		if len(q.events) > 0 || q.end != nil {
			q.wake()
		}
		return nil, fault.New(fault.RateLimited,
			"events were lost, because more came than could be kept until they were read; list the directory to see what is there")
	case len(q.events) > 0:
		taken := q.events
		q.events, q.bytes = nil, 0
		return taken, nil
	}
	return nil, q.end
}
