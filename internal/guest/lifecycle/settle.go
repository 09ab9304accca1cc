package lifecycle

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// settleAfter is how long nothing has to have been asked of the daemon. It is longer
	// than the pauses of a program that works with it, which would only have to take the
	// memory again.
	settleAfter = 3 * time.Second
	// settleAgain is how long after that it is done once more: what is kept of processes
	// that ended is forgotten by then.
	settleAgain = 45 * time.Second
	// settleAbove is how much memory the daemon may hold without being settled, in bytes.
	settleAbove = 10 << 20
)

// What the Go runtime has from the system, and what of it it has given back.
const (
	metricTotal    = "/memory/classes/total:bytes"
	metricReleased = "/memory/classes/heap/released:bytes"
)

// Settler gives the memory that a burst has taken back to the system once the burst is
// over. The runtime by itself collects an idle program every two minutes and keeps its
// pools through two collections, and all that time the memory is missing in the sandbox.
// While nothing is asked of the daemon a Settler does nothing, not even look at a clock. It
// is safe for concurrent use.
type Settler struct {
	wait, again time.Duration
	above       uint64 // bytes

	mu      sync.Mutex
	timer   *time.Timer // nil until the first Touch
	settled bool        // once since the last Touch
	closed  bool
}

// NewSettler returns a Settler that waits for the first Touch.
func NewSettler() *Settler {
	return &Settler{wait: settleAfter, again: settleAgain, above: settleAbove}
}

// Touch says that something was asked of the daemon.
func (s *Settler) Touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = false
	switch {
	case s.closed:
	case s.timer == nil:
		s.timer = time.AfterFunc(s.wait, s.settle)
	default:
		s.timer.Reset(s.wait)
	}
}

// Close ends the Settler; Touch does nothing any more.
func (s *Settler) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
}

func (s *Settler) settle() {
	if held() > s.above {
		releaseMemory()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settled && !s.closed {
		s.settled = true
		s.timer.Reset(s.again)
	}
}

// held is how much memory the Go runtime has from the system.
func held() uint64 {
	samples := []metrics.Sample{{Name: metricTotal}, {Name: metricReleased}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}

// releaseMemory gives what is not used back to the system. It collects twice, since what
// is pooled survives the first collection; the second one returns the memory too.
func releaseMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

// releaseMuch is releaseMemory for who waits: in a gVisor sandbox that has other work the two
// collections take some 15 ms, which a little memory is not worth.
func releaseMuch() {
	if held() > settleAbove {
		releaseMemory()
	}
}
