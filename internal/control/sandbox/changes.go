package sandbox

import (
	"context"
	"sync"
	"time"
)

// changes tells followers what becomes of sandboxes. The zero value is ready, and it is
// safe for concurrent use.
type changes struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
}

// follower is somebody who is told. What they were not told yet is kept by sandbox, so that
// a slow one costs no more than there are sandboxes.
type follower struct {
	pending map[string]Status
	wake    chan struct{}
}

func (c *changes) tell(id string, status Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.followers {
		f.pending[id] = status
		select {
		case f.wake <- struct{}{}:
		default: // it knows already that there is something
		}
	}
}

// follow calls each with every change from now on, until ctx ends.
func (c *changes) follow(ctx context.Context, each func(id string, status Status)) {
	f := &follower{pending: make(map[string]Status), wake: make(chan struct{}, 1)}
	c.mu.Lock()
	if c.followers == nil {
		c.followers = make(map[*follower]struct{})
	}
	c.followers[f] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.followers, f)
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		c.mu.Lock()
		batch := f.pending
		f.pending = make(map[string]Status)
		c.mu.Unlock()
		for id, status := range batch {
			each(id, status)
		}
	}
}

// tellingStore is a Store that tells of every change of a status. All changes go through
// it, whoever decided them, so that no follower can miss one.
type tellingStore struct {
	Store
	changes *changes
}

func (s tellingStore) Save(ctx context.Context, sb Sandbox, from ...Status) (bool, error) {
	ok, err := s.Store.Save(ctx, sb, from...)
	if ok {
		s.changes.tell(sb.ID, sb.Status)
	}
	return ok, err
}

func (s tellingStore) SetStatus(ctx context.Context, id string, to Status, reason string, at time.Time, from ...Status) (bool, error) {
	ok, err := s.Store.SetStatus(ctx, id, to, reason, at, from...)
	if ok {
		s.changes.tell(id, to)
	}
	return ok, err
}

func (s tellingStore) Expire(ctx context.Context, read Sandbox, to Status, reason string, at time.Time) (bool, error) {
	ok, err := s.Store.Expire(ctx, read, to, reason, at)
	if ok {
		s.changes.tell(read.ID, to)
	}
	return ok, err
}

func (s tellingStore) Delete(ctx context.Context, id string) (bool, error) {
	ok, err := s.Store.Delete(ctx, id)
	if ok {
		s.changes.tell(id, Missing)
	}
	return ok, err
}
