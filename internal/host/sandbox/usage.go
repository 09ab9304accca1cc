package sandbox

import (
	"context"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/metering"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// Metrics returns what a sandbox has used in the time d until now, oldest first, also of the
// time before a pause.
func (s *Service) Metrics(id string, d time.Duration) ([]metering.Point, error) {
	if _, err := s.Get(id); err != nil {
		return nil, err
	}
	return s.meter.Range(id, d)
}

// usage asks the runtime, which may know the sandbox's run by another id.
func (s *Service) usage(ctx context.Context, id string) (runtime.Usage, error) {
	s.mu.Lock()
	e, err := s.find(id)
	if err == nil && e.run == nil {
		err = fault.New(fault.NotFound, "sandbox %s does not run", id)
	}
	if err != nil {
		s.mu.Unlock()
		return runtime.Usage{}, err
	}
	run := e.run.id
	s.mu.Unlock()
	return s.cfg.Runtime.Usage(ctx, run)
}

// GuestDirs returns the directories of guest daemons that sandboxes and snapshots need.
func (s *Service) GuestDirs() []string {
	var dirs []string
	s.mu.Lock()
	for _, e := range s.entries {
		dirs = append(dirs, e.origin.GuestDir)
	}
	s.mu.Unlock()
	for _, snap := range s.cfg.Snapshots.List() {
		dirs = append(dirs, snap.GuestDir)
	}
	return dirs
}
