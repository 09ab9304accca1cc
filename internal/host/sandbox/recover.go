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
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
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
	loaded := make(map[string]*entry, len(ids))
	for _, id := range ids {
		loaded[id] = s.load(id)
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
	s.mu.Lock()
	for _, e := range s.entries {
		needed[e.snapshot] = true
	}
	s.mu.Unlock()
	err := s.cfg.Snapshots.Retain(func(snap snapshot.Snapshot) bool {
		return needed[snap.ID] || snap.Kind == snapshot.Template || snap.Damaged != ""
	})
	s.at("recover.snapshots")
	return errors.Join(err, s.meter.Retain(func(id string) bool { _, err := s.Get(id); return err == nil }))
}

// load makes an entry from a record. When that cannot be read, what was written down of the
// sandbox may still bring it back.
func (s *Service) load(id string) *entry {
	rec, err := s.records.read(id)
	if err == nil {
		e := &entry{state: state{
			sandbox: rec.Sandbox, origin: rec.Origin, snapshot: rec.Snapshot, draft: rec.Draft, fork: rec.Fork, slot: rec.Slot,
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
		e.snapshot = snap.ID
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
	if _, err := s.cfg.Snapshots.Get(e.fork); e.fork != "" && err == nil {
		status = Starting // its fork makes all copies or none
	}
	switch status {
	case Running, Pausing:
		s.takeOver(ctx, e)
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

// takeOver goes on with a sandbox that was running, or being paused, when its host agent
// ended.
func (s *Service) takeOver(ctx context.Context, e *entry) {
	if e.run == nil { // cannot be; but a record may say anything
		s.endFound(ctx, e, runtime.Exit{})
		return
	}
	if exit, ended := s.hasEnded(ctx, e.run.id); ended {
		s.endFound(ctx, e, exit)
		return
	}
	a := &adoption{operation: operation{s: s, name: "adopt"}, e: e}
	if err := carryOut(ctx, &a.operation, a, adoptPhases); err != nil {
		s.cfg.Log.Error("take over a running sandbox", "sandbox", e.sandbox.ID, "error", err)
		s.fail(e, "the host could not take it over when it was started again")
		return
	}
	s.set(e, func(st *state) { st.sandbox.Status, st.sandbox.Reason, st.draft = Running, "", "" })
	s.follow(e, e.run)
	a.at("running")
	a.log(e.sandbox.ID)
}

// endedWait is how long hasEnded waits for the end of what may have ended already.
const endedWait = 50 * time.Millisecond

// hasEnded says whether a run has ended. One that ends in this moment is seen later.
func (s *Service) hasEnded(ctx context.Context, id string) (runtime.Exit, bool) {
	ctx, cancel := context.WithTimeout(ctx, endedWait)
	defer cancel()
	exit, err := s.cfg.Runtime.Wait(ctx, id)
	return exit, err == nil
}

// endFound ends a sandbox whose run ended while nobody looked: it is paused, when its pause
// had come so far that it was safe.
func (s *Service) endFound(ctx context.Context, e *entry, exit runtime.Exit) {
	if e.sandbox.Status == Pausing {
		if snap, err := s.cfg.Snapshots.Get(e.draft); err == nil && snap.Damaged == "" {
			e.sandbox.Status, e.snapshot = Paused, snap.ID
			e.sandbox.PausedAt, e.sandbox.SnapshotBytes = snap.CreatedAt, snap.Bytes
			s.putToRest(ctx, e)
			return
		}
	}
	reason := whyEnded(e.sandbox, exit)
	if exit == (runtime.Exit{}) {
		reason = "the sandbox ended while its host's agent was not running; the host may have been restarted"
	}
	s.fail(e, reason)
}

// adoption is the taking over of a run.
type adoption struct {
	operation
	e *entry
}

// adoptPhases are its steps. Each is harmless when it was not needed, since nobody knows how
// far a pause, a snapshot, or the undoing of one had come.
var adoptPhases = []phase[*adoption]{
	{"network", "take over its network", func(a *adoption, ctx context.Context) error {
		r := a.e.run
		r.guest = newGuest(r, a.e.origin.Token)
		r.place = a.s.room.force(demand{memoryMB: a.e.sandbox.Resources.MemoryMB})
		if err := a.s.cfg.Network.Adopt(ctx, r.slot); err != nil {
			return err
		}
		return a.s.cfg.Network.SetRate(ctx, r.slot, a.s.cfg.NetworkRate, a.s.cfg.NetworkRate)
	}},
	{"thaw", "let it go on", func(a *adoption, ctx context.Context) error { return a.s.cfg.Runtime.Thaw(ctx, a.e.run.id) }},
	{"unhold", "let its network go on", func(a *adoption, ctx context.Context) error {
		return a.s.cfg.Network.Unhold(ctx, a.e.run.slot)
	}},
	{"init", "wake the guest", func(a *adoption, ctx context.Context) error { a.s.wake(ctx, a.e); return nil }},
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
