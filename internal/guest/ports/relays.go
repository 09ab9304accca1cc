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
	// idle is how long a whole connection may be silent when another wants the place. It may
	// be one that somebody means to use, so nothing else ends it.
	idle time.Duration
	// sample is how often it is looked which whole connections are silent, at most.
	sample time.Duration
}

// usualLimits leave room for others beside a port whose server answers nobody. A
// connection takes two sockets and, until one direction has ended, up to two pipes.
var usualLimits = limits{
	all:      1024,
	port:     512,
	halfOpen: 10 * time.Minute,
	scarce:   time.Second,
	idle:     2 * time.Minute,
	sample:   30 * time.Second,
}

// relays knows the connections that are forwarded. It is safe for concurrent use.
type relays struct {
	limits limits
	began  time.Time // what relay.moved counts from; clocks may be set

	mu    sync.Mutex
	all   int
	ports map[uint16]int // the part of all of each port that has any
	// whole are those that both sides may send on, and halfOpen those that one may.
	whole, halfOpen map[*relay]struct{}
	sampled         time.Time
}

func newRelays(l limits) *relays {
	return &relays{limits: l, began: time.Now(), ports: make(map[uint16]int), whole: make(map[*relay]struct{}), halfOpen: make(map[*relay]struct{})}
}

// relay is one connection that is forwarded.
type relay struct {
	all             *relays
	port            uint16
	outside, inside *net.TCPConn // inside is nil until the server has accepted

	// moved is when data moved last; of a whole connection, as of the last sample.
	moved atomic.Int64
	left  bool // no longer counted; guarded by relays.mu
}

// enter makes room for a connection; nil when there is none. What is half-open and silent
// for the longest time gives way, and then what is whole and silent for long.
func (s *relays) enter(port uint16, outside *net.TCPConn) *relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	ofPort := s.ports[port] >= s.limits.port
	if ofPort || s.all >= s.limits.all {
		longest := s.longestSilent(s.halfOpen, s.limits.scarce, port, ofPort)
		if longest == nil {
			longest = s.longestSilent(s.whole, s.limits.idle, port, ofPort)
		}
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

// begin says that the server has accepted: the connection is whole.
func (s *relays) begin(r *relay, inside *net.TCPConn) {
	r.touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.inside = inside
	s.whole[r] = struct{}{}
}

// longestSilent returns the one of some connections that has to give way to one to port, nil
// when none has been silent for that long. Its caller holds mu.
func (s *relays) longestSilent(of map[*relay]struct{}, least time.Duration, port uint16, ofPort bool) *relay {
	var longest *relay
	for r := range of {
		if ofPort && r.port != port || r.silence() < least {
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
	delete(s.whole, r)
	if r.left {
		return
	}
	r.left = true
	s.all--
	if s.ports[r.port]--; s.ports[r.port] == 0 {
		delete(s.ports, r.port)
	}
}

// directionEnded says that one direction of a connection is over and the other, which is read
// from rest, goes on. What waits there is woken: from then on it can be watched.
func (s *relays) directionEnded(r *relay, rest *net.TCPConn) {
	r.touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.whole, r)
	if !r.left {
		s.halfOpen[r] = struct{}{}
	}
	_ = rest.SetReadDeadline(past) // a closed one has ended already
}

// goesOn reports whether a connection is whole still, and then lets what reads from it wait
// again: it was woken for a sample alone.
func (s *relays) goesOn(r *relay, from *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, whole := s.whole[r]; !whole {
		return false
	}
	return from.SetReadDeadline(time.Time{}) == nil
}

// takeSample wakes all whole connections, now and then, so that they say whether anything has
// moved since the last time. It does so only where places are getting scarce.
func (s *relays) takeSample() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isCrowded() || time.Since(s.sampled) < s.limits.sample {
		return
	}
	s.sampled = time.Now()
	for r := range s.whole {
		_ = r.outside.SetReadDeadline(past)
		_ = r.inside.SetReadDeadline(past)
	}
}

// isCrowded reports whether half of the places are taken, of all or of a port. Its caller
// holds mu.
func (s *relays) isCrowded() bool {
	if s.all >= s.limits.all/2 {
		return true
	}
	for _, n := range s.ports {
		if n >= s.limits.port/2 {
			return true
		}
	}
	return false
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
