package watch

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Bounds of the watches that are asked and not listened to. Nothing tells when their
// client is gone, so one that is not asked for KeepFor is closed.
const (
	KeepFor     = time.Hour
	maxWatchers = 64
)

// Asked is a watch that collects events until it is asked for them.
type Asked struct {
	*Watch
	// Path is the watched directory, and IncludeEntry what was wished at its creation.
	Path         string
	IncludeEntry bool

	idle *time.Timer
}

// Watchers are the watches that are asked, by their ids. It is safe for concurrent use.
type Watchers struct {
	keepFor time.Duration

	mu     sync.Mutex
	byID   map[string]*Asked
	closed bool
}

// NewWatchers returns Watchers that close a watch which is not asked for keepFor.
func NewWatchers(keepFor time.Duration) *Watchers {
	return &Watchers{keepFor: keepFor, byID: make(map[string]*Asked)}
}

// Create begins to watch the directory path and returns the id to ask by.
func (s *Watchers) Create(ctx context.Context, path string, opts Options, includeEntry bool) (string, error) {
	if err := s.room(); err != nil {
		return "", err // before a whole tree is watched for nothing
	}
	watch, err := Open(ctx, path, opts)
	if err != nil {
		return "", err
	}
	id := rand.Text()
	asked := &Asked{Watch: watch, Path: path, IncludeEntry: includeEntry}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.roomLocked(); err != nil {
		watch.Close()
		return "", err
	}
	asked.idle = time.AfterFunc(s.keepFor, func() { _ = s.Remove(id) })
	s.byID[id] = asked
	return id, nil
}

func (s *Watchers) room() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomLocked()
}

func (s *Watchers) roomLocked() error {
	switch {
	case s.closed:
		return fault.New(fault.InvalidState, "the guest daemon is stopping")
	case len(s.byID) >= maxWatchers:
		return fault.New(fault.RateLimited, "there are %d watchers already; remove some that are not needed any more", maxWatchers)
	}
	return nil
}

// Find returns the watch with this id, and keeps it for another while.
func (s *Watchers) Find(id string) (*Asked, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.byID[id]
	if asked == nil {
		return nil, fault.New(fault.NotFound,
			"watcher with id '%s' not found; it was removed, or was not asked for %v and ended", id, s.keepFor)
	}
	asked.idle.Reset(s.keepFor)
	return asked, nil
}

// Remove ends the watch with this id.
func (s *Watchers) Remove(id string) error {
	asked, err := s.Find(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.byID, id)
	s.mu.Unlock()
	asked.idle.Stop()
	asked.Close()
	return nil
}

// Close ends all watches, and refuses new ones.
func (s *Watchers) Close() {
	s.mu.Lock()
	all := s.byID
	s.byID, s.closed = make(map[string]*Asked), true
	s.mu.Unlock()
	for _, asked := range all {
		asked.idle.Stop()
		asked.Close()
	}
}
