package ports

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// limits bound what the connections that are forwarded may take.
type limits struct {
	// all and port are how many there may be at once, over all ports and to one port.
	all, port int
	// halfOpen is how long a connection may be silent of which one direction has ended.
	// That end may be all that is ever heard of a client which has gone, and its server
	// may never answer.
	halfOpen time.Duration
	// scarce is the same when another connection wants the place.
	scarce time.Duration
}

// usualLimits leave room for others beside a port whose server answers nobody. A
// connection takes two sockets and, until one direction has ended, up to two pipes.
var usualLimits = limits{
	all:      1024,
	port:     512,
	halfOpen: 10 * time.Minute,
	scarce:   time.Second,
}

// relays knows the connections that are forwarded. It is safe for concurrent use.
type relays struct {
	limits limits
	began  time.Time // what relay.moved counts from; clocks may be set

	mu       sync.Mutex
	all      int
	ports    map[uint16]int // the part of all of each port that has any
	halfOpen map[*relay]struct{}
}

func newRelays(l limits) *relays {
	return &relays{limits: l, began: time.Now(), ports: make(map[uint16]int), halfOpen: make(map[*relay]struct{})}
}

// relay is one connection that is forwarded.
type relay struct {
	all             *relays
	port            uint16
	outside, inside *net.TCPConn // inside is nil until the server has accepted

	// moved is when data moved last, known from the end of one direction on.
	moved atomic.Int64
	left  bool // no longer counted; guarded by relays.mu
}

// enter makes room for a connection; nil when there is none. What is half-open and silent
// for the longest time gives way.
func (s *relays) enter(port uint16, outside *net.TCPConn) *relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	ofPort := s.ports[port] >= s.limits.port
	if ofPort || s.all >= s.limits.all {
		longest := s.longestSilent(port, ofPort)
		if longest == nil {
			return nil
		}
		s.drop(longest)
		longest.cut()
	}
	s.all++
	s.ports[port]++
	return &relay{all: s, port: port, outside: outside}
}

// longestSilent returns the half-open connection that has to give way to one to port, nil
// when there is none. Its caller holds mu.
func (s *relays) longestSilent(port uint16, ofPort bool) *relay {
	var longest *relay
	for r := range s.halfOpen {
		if ofPort && r.port != port || r.silence() < s.limits.scarce {
			continue
		}
		if longest == nil || r.moved.Load() < longest.moved.Load() {
			longest = r
		}
	}
	return longest
}

// leave gives back the room of a connection that has ended.
func (s *relays) leave(r *relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(r)
}

// drop is leave, any number of times, with mu held.
func (s *relays) drop(r *relay) {
	delete(s.halfOpen, r)
	if r.left {
		return
	}
	r.left = true
	s.all--
	if s.ports[r.port]--; s.ports[r.port] == 0 {
		delete(s.ports, r.port)
	}
}

// directionEnded says that one direction of a connection is over and the other goes on.
func (s *relays) directionEnded(r *relay) {
	r.touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halfOpen[r] = struct{}{}
}

// cutSilent cuts what has been half-open and silent for too long.
func (s *relays) cutSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.halfOpen {
		if r.silence() >= s.limits.halfOpen {
			s.drop(r)
			r.cut()
		}
	}
}

// touch says that data moves.
func (r *relay) touch() { r.moved.Store(int64(time.Since(r.all.began))) }

func (r *relay) silence() time.Duration {
	return time.Since(r.all.began) - time.Duration(r.moved.Load())
}

// cut resets both sides, at any time after the server has accepted.
func (r *relay) cut() {
	reset(r.outside)
	reset(r.inside)
}
