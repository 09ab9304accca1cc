package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// removeLeftovers removes what a killed process of ours left: what the runtime still has
// of any sandbox, network slots, and records. It trusts no single one of them: a crash
// may have come between any two steps of a create or a destroy.
func (s *Service) removeLeftovers(ctx context.Context) error {
	running, err := s.cfg.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list the runtime's sandboxes: %w", err)
	}
	if len(running) > 0 {
		s.cfg.Log.Info("removing sandboxes that an earlier run left", "count", len(running))
	}
	err = s.each(running, func(id string) error {
		ctx, cancel := context.WithTimeout(ctx, undoTimeout)
		defer cancel()
		return s.cfg.Runtime.Destroy(ctx, id)
	})
	if err != nil {
		return err
	}
	if err := s.cfg.Network.Sweep(ctx, nil); err != nil {
		return fmt.Errorf("sweep network slots: %w", err)
	}
	ids, err := s.records.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := s.records.remove(id); err != nil {
			return err
		}
	}
	return nil
}

// each calls f for every id, some at a time, and returns what went wrong.
func (s *Service) each(ids []string, f func(id string) error) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		free = make(chan struct{}, parallelEnds)
	)
	for _, id := range ids {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			if err := f(id); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("sandbox %s: %w", id, err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
