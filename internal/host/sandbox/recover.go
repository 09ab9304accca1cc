package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// recover finds out what an earlier process of ours has left, from the records, from what
// the runtime and the network have, and from the snapshots. It trusts no single one of them:
// a crash may have come between any two steps of anything.
func (s *Service) recover(ctx context.Context) error {
	left, err := s.cfg.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list the runtime's sandboxes: %w", err)
	}
	ids, err := s.records.ids()
	if err != nil {
		return err
	}
	ids = append(ids, s.unrecorded(ids)...)
	loaded := make(map[string]*entry, len(ids))
	for _, id := range ids {
		loaded[id] = s.load(id)
	}
	for _, id := range left {
		// A record learns late of what a resume has begun.
		if e := loaded[id]; e != nil && e.run == nil {
			e.run = &run{id: id, slot: e.slot}
		}
	}
	s.entries = maps.Clone(loaded) // those that are removed go from it while others are taken up
	// What goes wrong with one sandbox is that one's, and no reason not to start.
	_ = s.each(ids, func(id string) error { s.takeUp(ctx, loaded[id]); return nil })
	s.at("recover.entries")

	used, slots := s.needed()
	left = slices.DeleteFunc(left, func(id string) bool { return used[id] })
	if len(left) > 0 {
		s.cfg.Log.Info("removing what an earlier run left of sandboxes", "count", len(left))
	}
	err = s.each(left, func(id string) error {
		ctx, cancel := context.WithTimeout(ctx, undoTimeout)
		defer cancel()
		return s.cfg.Runtime.Destroy(ctx, id)
	})
	if err != nil {
		return err
	}
	s.at("recover.runs")
	if err := s.cfg.Network.Sweep(ctx, slots); err != nil {
		return fmt.Errorf("sweep network slots: %w", err)
	}
	s.at("recover.slots")
	return s.retain()
}

// needed returns the runs and the slots that sandboxes have. One that was taken over may end
// at any time.
func (s *Service) needed() (runs map[string]bool, slots []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	runs = map[string]bool{}
	for _, e := range s.entries {
		if e.run != nil {
			runs[e.run.id] = true
		}
		if e.slot.Link != "" && (e.run != nil || e.sandbox.Status == Paused) {
			slots = append(slots, e.slot.Index)
		}
	}
	return runs, slots
}

// retain removes the snapshots and metrics that nobody needs.
func (s *Service) retain() error {
	needed := map[string]bool{}
	// lost is whether there is a sandbox of which nothing is known: a pause's snapshot whose
	// manifest cannot be read may be its own, and be of use to a person.
	lost := false
	s.mu.Lock()
	for _, e := range s.entries {
		lost = lost || e.origin.Image == ""
		needed[e.snapshot] = true
		needed[e.draft] = true // of a pause that may still turn out to be its end
	}
	s.mu.Unlock()
	err := s.cfg.Snapshots.Retain(func(snap snapshot.Snapshot) bool {
		switch {
		case needed[snap.ID] || snap.Kind == snapshot.Template:
			return true
		case snap.Damaged == "" || forkPattern.MatchString(snap.ID):
			return false // a fork makes all its copies in one life of this process
		}
		return lost || !pausePattern.MatchString(snap.ID)
	})
	s.at("recover.snapshots")
	return errors.Join(err, s.meter.Retain(func(id string) bool { _, err := s.Get(id); return err == nil }))
}

// unrecorded returns the sandboxes that are not among these and can be brought back from
// what was written down of them.
func (s *Service) unrecorded(recorded []string) (ids []string) {
	for _, snap := range s.cfg.Snapshots.List() {
		id := snap.SandboxID
		if snap.Kind == snapshot.Pause && snap.Damaged == "" && idPattern.MatchString(id) && !slices.Contains(recorded, id) && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// load makes an entry from a record. When that is gone or cannot be read, what was written down of the
// sandbox may still bring it back.
func (s *Service) load(id string) *entry {
	rec, err := s.records.read(id)
	if err == nil {
		e := &entry{state: state{
			sandbox: rec.Sandbox, origin: rec.Origin, snapshot: rec.Snapshot, draft: rec.Draft, fork: rec.Fork, slot: rec.Slot, untaken: rec.Untaken,
			told: rec.Told,
		}}
		if rec.Run != nil {
			e.run = &run{id: rec.Run.ID, slot: rec.Run.Slot}
		}
		return e
	}
	s.cfg.Log.Error("a record cannot be read", "sandbox", id, "error", err)
	e := &entry{state: state{sandbox: Sandbox{
		ID: id, Status: Failed, Runtime: s.cfg.Runtime.Name(), Reason: "what the host knew of it was lost; delete it",
	}}}
	for _, snap := range s.cfg.Snapshots.List() {
		if snap.Kind != snapshot.Pause || snap.SandboxID != id || snap.CreatedAt.Before(e.sandbox.PausedAt) {
			continue
		}
		e.snapshot, e.told = snap.ID, snap.CreatedAt
		e.origin = origin{Image: snap.Image, GuestDir: snap.GuestDir, Env: snap.Env, DefaultUser: snap.DefaultUser, Token: snap.Token}
		e.sandbox.Template, e.sandbox.Resources = snap.Template, Resources(snap.Resources)
		e.sandbox.PausedAt, e.sandbox.SnapshotBytes = snap.CreatedAt, snap.Bytes
		e.sandbox.Reason = "what the host knew of it was lost; it can be resumed from its pause of " + snap.CreatedAt.UTC().Format(time.RFC3339)
	}
	return e
}

// takeUp brings an entry into a state that lasts.
func (s *Service) takeUp(ctx context.Context, e *entry) {
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	id, status := e.sandbox.ID, e.sandbox.Status
	if e.untaken != "" {
		status = e.untaken
	}
	if _, err := s.cfg.Snapshots.Get(e.fork); e.fork != "" && err == nil {
		status = Starting // its fork makes all copies or none
	}
	switch status {
	case Running, Pausing:
		s.takeOver(ctx, e, status)
	case Paused, Resuming, Failed:
		s.putToRest(ctx, e)
	default: // it was being made, or being removed
		_, done := e.begin(ctx, actDestroy)
		if err := s.destroy(ctx, e, done); err != nil {
			s.cfg.Log.Error("remove what is left of a sandbox", "sandbox", id, "error", err)
		}
	}
}

// putToRest ends what is left of the run of a sandbox that is to be on the disk alone.
func (s *Service) putToRest(ctx context.Context, e *entry) {
	slot := parkSlot
	if e.sandbox.Status == Failed {
		slot = releaseSlot // its connections went on after its pause
	}
	if err := s.endRun(ctx, e, "adopt", slot, errPaused); err != nil {
		// It is tried again before the next resume, and by a destroy.
		s.cfg.Log.Error("give back what a sandbox held", "sandbox", e.sandbox.ID, "error", err)
	}
	status, reason := e.sandbox.Status, e.sandbox.Reason
	if status == Resuming {
		status, reason = Paused, "the host stopped while the sandbox was being resumed; it is as it was when it was paused"
	}
	_, err := s.cfg.Snapshots.Get(e.snapshot)
	lost := e.snapshot != "" && fault.Is(err, fault.NotFound)
	if lost {
		status, reason = Failed, "what it could be resumed from is not on the host's disk any more; delete it"
	}
	s.setDurable(e, func(st *state) {
		st.sandbox.Status, st.sandbox.Reason, st.draft = status, reason, ""
		if lost {
			st.snapshot, st.sandbox.PausedAt, st.sandbox.SnapshotBytes = "", time.Time{}, 0
		}
	})
}

// parallelEnds is how many sandboxes are worked on at once when it is about all of them.
const parallelEnds = 8

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

// ids returns the sandboxes that are in one of the states.
func (s *Service) ids(in ...Status) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, e := range s.entries {
		if slices.Contains(in, e.sandbox.Status) {
			ids = append(ids, id)
		}
	}
	return ids
}
