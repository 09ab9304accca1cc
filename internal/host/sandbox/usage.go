package sandbox

import (
	"context"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/metering"
)

// Metrics returns what a sandbox has used in the time d until now, oldest first, also of the
// time before a pause.
func (s *Service) Metrics(id string, d time.Duration) ([]metering.Point, error) {
	if _, err := s.Get(id); err != nil {
		return nil, err
	}
	return s.meter.Range(id, d)
}

// usage asks the runtime, which may know the sandbox's run by another id, and the network.
func (s *Service) usage(ctx context.Context, id string) (use metering.Use, err error) {
	s.mu.Lock()
	e, err := s.find(id)
	if err == nil && e.run == nil {
		err = fault.New(fault.NotFound, "sandbox %s does not run", id)
	}
	if err != nil {
		s.mu.Unlock()
		return use, err
	}
	run, slot, may := e.run.id, e.run.slot, e.sandbox.Resources
	s.mu.Unlock()
	if use.Usage, err = s.cfg.Runtime.Usage(ctx, run); err != nil {
		return use, err
	}
	if use.SentBytes, use.ReceivedBytes, err = s.cfg.Network.Passed(slot); err != nil {
		return use, err
	}
	const percent = 100
	use.Limits = metering.Limits{
		CPUPct: percent * float64(may.VCPUs), MemoryBytes: use.MemoryLimitBytes, DiskBytes: uint64(may.DiskMB) * mib,
		Processes: use.ProcessLimit, NetworkBitsPerSecond: uint64(s.cfg.NetworkRate),
	}
	return use, nil
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
