package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// parallelCopies is how many copies are restored at once: more would only make all of them
// slow, and each takes memory of the host's own while it is restored.
const parallelCopies = 8

// forkTimeout bounds how long the copies may take together.
const forkTimeout = 5 * time.Minute

// Fork makes copies of a running sandbox, which goes on, with ids that the caller chooses.
// It makes all of them or none.
func (x Snapshots) Fork(ctx context.Context, id string, copies []string) ([]Sandbox, error) {
	s := x.s
	if len(copies) == 0 {
		return nil, fault.New(fault.InvalidRequest, "a fork makes at least one copy")
	}
	seen := map[string]bool{}
	for _, c := range copies {
		if !idPattern.MatchString(c) {
			return nil, fault.New(fault.InvalidRequest, "sandbox id %q must match %s", c, idPattern)
		}
		if _, err := s.Get(c); err == nil || seen[c] {
			return nil, fault.New(fault.Conflict, "sandbox %q exists already", c)
		}
		seen[c] = true
	}
	if err := s.checkDisk(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, forkTimeout)
	defer cancel()
	snap, err := s.image(ctx, "fork", id, forkPrefix+randomName(), snapshot.Fork)
	if err != nil {
		return nil, fmt.Errorf("fork sandbox: %w", err)
	}
	forks, err := s.copyAll(ctx, snap, copies)
	// With its end the copies are there for good; see state.fork.
	if dropErr := s.removeSnapshot(snap.ID); dropErr != nil {
		s.cfg.Log.Error("remove the snapshot of a fork", "snapshot", snap.ID, "error", dropErr)
	}
	s.at("fork.dropped")
	s.cutLoose(forks)
	if err != nil {
		return nil, fmt.Errorf("fork sandbox: %w", err)
	}
	return forks, nil
}

// cutLoose makes copies last whether or not the snapshot that they were made from is on the
// disk: it may not have been possible to remove it, or a loss of power may bring it back.
func (s *Service) cutLoose(copies []Sandbox) {
	for _, c := range copies {
		s.mu.Lock()
		e := s.entries[c.ID]
		s.mu.Unlock()
		if e != nil {
			s.set(e, func(st *state) { st.fork = "" })
		}
	}
}

// copyAll makes sandboxes from a snapshot, side by side: all of them or none.
func (s *Service) copyAll(ctx context.Context, snap snapshot.Snapshot, ids []string) ([]Sandbox, error) {
	ctx, cutOff := context.WithCancelCause(ctx)
	defer cutOff(nil)
	var (
		made = make([]*creation, len(ids))
		errs = make([]error, len(ids))
		wg   sync.WaitGroup
		free = make(chan struct{}, parallelCopies)
	)
	for i, id := range ids {
		c, err := s.newCopy(snap, id)
		if err != nil {
			return nil, err
		}
		made[i] = c
	}
	// The copies are each busy until it is known that there will be all of them.
	for i, c := range made {
		op, done, err := c.reserve(ctx)
		if err != nil {
			errs[i] = err
			cutOff(err)
			break
		}
		defer done() //nolint:revive,gocritic // all of them are busy until the end of the fork
		wg.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			if errs[i] = c.make(op); errs[i] != nil {
				cutOff(errs[i])
			}
		})
		made[i].reserved = true
	}
	wg.Wait()
	if err := firstCause(ctx, errs); err != nil {
		for _, c := range made {
			if c.reserved {
				wg.Go(func() { _ = c.abandon(ctx, err) })
			}
		}
		wg.Wait()
		return nil, err
	}
	s.at("fork.copied")
	forks := make([]Sandbox, len(ids))
	for i, c := range made {
		c.publish()
		s.mu.Lock()
		forks[i] = c.e.sandbox
		s.mu.Unlock()
	}
	return forks, nil
}

// firstCause returns what went wrong first: the rest failed because of it.
func firstCause(ctx context.Context, errs []error) error {
	if errors.Join(errs...) == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return errors.Join(errs...)
}

func (s *Service) newCopy(snap snapshot.Snapshot, id string) (*creation, error) {
	c := &creation{}
	c.launch = launch{operation: operation{s: s, name: "copy"}, id: id, hostname: id, run: &run{id: id}, trusted: true}
	if err := c.from(snap); err != nil {
		return nil, err
	}
	if err := c.makeEntry(snap.Template); err != nil {
		return nil, err
	}
	c.e.fork = snap.ID
	return c, nil
}
