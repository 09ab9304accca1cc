package sandbox

import (
	"context"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Metrics returns what a sandbox has used in the time before now, oldest first. Of one that
// its host does not have, or has no more, nothing is known.
func (s *Service) Metrics(ctx context.Context, id string, before time.Duration) ([]Point, error) {
	if _, err := s.store.Get(ctx, id); err != nil {
		return nil, err
	}
	points, err := s.snapshots.host.Metrics(ctx, id, before)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	return points, err
}
