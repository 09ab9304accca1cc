package ports

import "sync"

// signals tells any number of subscribers that something has changed. Each has a channel
// with room for one value, and nobody ever waits to send: a subscriber that is slow, gone
// or inside a callback of its own cannot hold up the one that tells. The zero value is
// ready.
type signals struct {
	mu          sync.Mutex
	subscribers map[chan struct{}]struct{}
}

func (s *signals) subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.subscribers == nil {
		s.subscribers = make(map[chan struct{}]struct{})
	}
	s.subscribers[c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, c)
	}
}

func (s *signals) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.subscribers {
		poke(c)
	}
}

// poke puts a value into a channel that has room for one, unless one is there already.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
