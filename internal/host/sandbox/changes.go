package sandbox

import (
	"context"
	"sync"
)

// changes hands the news of sandboxes to those who watch. A watcher that is slow never
// holds up a change and never misses the latest state of a sandbox: of several changes
// of one sandbox it may see only the last. It is safe for concurrent use.
type changes struct {
	mu       sync.Mutex
	closed   bool
	current  map[string]Sandbox
	watchers map[*watcher]struct{}
}

// watcher is one who watches: what it has not seen yet, in order.
type watcher struct {
	pending map[string]Sandbox
	order   []string
	wake    chan struct{} // holds a token while there may be something to see
}

func newChanges() *changes {
	return &changes{current: map[string]Sandbox{}, watchers: map[*watcher]struct{}{}}
}

func (w *watcher) add(sb Sandbox) {
	if _, waiting := w.pending[sb.ID]; !waiting {
		w.order = append(w.order, sb.ID)
	}
	w.pending[sb.ID] = sb
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (c *changes) publish(sb Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current[sb.ID] = sb
	for w := range c.watchers {
		w.add(sb)
	}
}

// forget drops a sandbox whose last state has been published.
func (c *changes) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.current, id)
}

func (c *changes) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for w := range c.watchers {
		close(w.wake)
		delete(c.watchers, w)
	}
}

// Watch calls sandbox for every sandbox of this host, then synced, then sandbox again
// for every change, until ctx ends (nil), the Service is closed (nil), or a call fails.
func (s *Service) Watch(ctx context.Context, sandbox func(Sandbox) error, synced func() error) error {
	w := &watcher{pending: map[string]Sandbox{}, wake: make(chan struct{}, 1)}
	c := s.changes
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	first := make([]Sandbox, 0, len(c.current))
	for _, sb := range c.current {
		first = append(first, sb)
	}
	c.watchers[w] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, w)
	}()
	for _, sb := range first {
		if err := sandbox(sb); err != nil {
			return err
		}
	}
	if err := synced(); err != nil {
		return err
	}
	for open := true; open; {
		select {
		case <-ctx.Done():
			return nil
		case _, open = <-w.wake:
		}
		c.mu.Lock()
		news := make([]Sandbox, 0, len(w.order))
		for _, id := range w.order {
			news = append(news, w.pending[id])
		}
		clear(w.pending)
		w.order = w.order[:0]
		c.mu.Unlock()
		for _, sb := range news {
			if err := sandbox(sb); err != nil {
				return err
			}
		}
	}
	return nil
}
