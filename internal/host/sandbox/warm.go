package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Warm says how many sandboxes to keep ready that are to be made from a snapshot.
type Warm struct {
	Snapshot string
	Count    int
}

const (
	// maxWarm bounds how many sandboxes are kept ready altogether.
	maxWarm = 256
	// warmRetry is how long it takes until a sandbox is tried again that could not be made
	// ready, as for want of room.
	warmRetry = 5 * time.Second
)

// warmth keeps runs ready ahead of demand: restored, answering, and nobody yet. They are in
// no record, so that the next start removes those that a killed process leaves. It is safe
// for concurrent use.
type warmth struct {
	s *Service
	// life ends when no more is made, at the latest with the Service.
	life context.Context
	end  context.CancelFunc

	mu      sync.Mutex
	closed  bool
	want    map[string]int
	ready   map[string][]*launch
	filling map[string]bool // somebody makes runs of that snapshot ready
	fillers sync.WaitGroup
}

func newWarmth(s *Service) *warmth {
	w := &warmth{s: s, want: map[string]int{}, ready: map[string][]*launch{}, filling: map[string]bool{}}
	w.life, w.end = context.WithCancel(s.life)
	return w
}

// SetWarm says of which snapshots sandboxes are kept ready, in place of what was said
// before. It does not wait until they are, and passes over a snapshot that cannot be used:
// it is no reason to do without the others.
func (x Snapshots) SetWarm(ctx context.Context, all []Warm) error {
	want, sum := map[string]int{}, 0
	for _, w := range all {
		if w.Count < 0 {
			return fault.New(fault.InvalidRequest, "cannot keep %d sandboxes ready", w.Count)
		}
		if _, err := x.get(w.Snapshot); err != nil {
			x.s.cfg.Log.Warn("cannot keep sandboxes ready", "snapshot", w.Snapshot, "error", err)
			continue
		}
		want[w.Snapshot] += w.Count
		sum += w.Count
	}
	if sum > maxWarm {
		return fault.New(fault.InvalidRequest, "cannot keep %d sandboxes ready; the most is %d", sum, maxWarm)
	}
	return x.s.warm.set(ctx, want)
}

func (w *warmth) set(ctx context.Context, want map[string]int) error {
	var surplus []*launch
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return errStopping
	}
	w.want = want
	for id, ready := range w.ready {
		if n := want[id]; len(ready) > n {
			surplus = append(surplus, ready[n:]...)
			w.ready[id] = slices.Clone(ready[:n])
		}
	}
	for id := range want {
		w.fill(id)
	}
	w.mu.Unlock()
	return endAll(ctx, surplus)
}

// take returns a run that is ready to be a sandbox made from the snapshot; nil when there is
// none. The caller undoes it like a launch of its own.
func (w *warmth) take(id string) *launch {
	w.mu.Lock()
	defer w.mu.Unlock()
	ready := w.ready[id]
	if len(ready) == 0 {
		return nil
	}
	w.ready[id] = ready[1:]
	w.fill(id)
	return ready[0]
}

// giveUp ends one run that is ready, to make room; false when there is none.
func (w *warmth) giveUp(ctx context.Context) bool {
	w.mu.Lock()
	var l *launch
	for id, ready := range w.ready {
		if len(ready) > 0 {
			l, w.ready[id] = ready[0], ready[1:]
			w.fillAfter(id, warmRetry) // not before who needs the room has it
			break
		}
	}
	w.mu.Unlock()
	return l != nil && endAll(ctx, []*launch{l}) == nil
}

// drop ends what is ready of a snapshot and keeps no more of it.
func (w *warmth) drop(ctx context.Context, id string) error {
	w.mu.Lock()
	ready := w.ready[id]
	delete(w.ready, id)
	delete(w.want, id)
	w.mu.Unlock()
	return endAll(ctx, ready)
}

// close ends everything, and no more is made.
func (w *warmth) close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	clear(w.want)
	w.mu.Unlock()
	w.end()
	w.fillers.Wait()
	w.mu.Lock()
	var all []*launch
	for _, ready := range w.ready {
		all = append(all, ready...)
	}
	clear(w.ready)
	w.mu.Unlock()
	return endAll(ctx, all)
}

func endAll(ctx context.Context, all []*launch) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, l := range all {
		wg.Go(func() { errs[i] = l.rollBack(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// fill sees to it that as many runs of a snapshot become ready as are wanted. The caller
// holds w.mu.
func (w *warmth) fill(id string) { w.fillAfter(id, 0) }

// fillAfter is fill that begins after a time.
func (w *warmth) fillAfter(id string, wait time.Duration) {
	if w.filling[id] || w.closed {
		return
	}
	w.filling[id] = true
	w.fillers.Go(func() {
		w.rest(wait)
		for failed := false; w.lacks(id); {
			err := w.addOne(id)
			if err != nil {
				if !failed && w.life.Err() == nil { // a host may be full for long: it is said once
					w.s.cfg.Log.Warn("cannot keep a sandbox ready; trying again", "snapshot", id, "error", err)
				}
				w.rest(warmRetry)
			}
			failed = err != nil
		}
	})
}

// rest waits, or until no more is made.
func (w *warmth) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.life.Done():
	}
}

// lacks says whether there are too few; otherwise nobody fills any more.
func (w *warmth) lacks(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed && len(w.ready[id]) < w.want[id] {
		return true
	}
	delete(w.filling, id)
	return false
}

// addOne makes one run ready.
func (w *warmth) addOne(id string) error {
	s := w.s
	snap, err := s.Snapshots().get(id)
	if err != nil {
		return err
	}
	c := &creation{}
	runID := "sb" + randomName()
	c.launch = launch{operation: operation{s: s, name: "warm"}, id: runID, hostname: runID, run: &run{id: runID}}
	if err := c.from(snap); err != nil {
		return err
	}
	c.origin.Token = snap.Token
	ctx, cancel := context.WithTimeout(w.life, launchTime(c.bytes))
	defer cancel()
	at, err := s.room.take(ctx, c.need, 0)
	if err != nil {
		return err
	}
	c.onFailure(func(context.Context) error { at.leave(); return nil })
	c.run.place = at
	if err := c.start(ctx); err != nil {
		return errors.Join(fmt.Errorf("make a sandbox ready: %w", err), c.rollBack(ctx))
	}
	w.mu.Lock()
	if w.want[id] <= len(w.ready[id]) {
		w.mu.Unlock()
		return c.rollBack(ctx)
	}
	w.ready[id] = append(w.ready[id], &c.launch)
	w.mu.Unlock()
	s.watchers.Go(func() { w.watch(id, &c.launch) })
	return nil
}

// watch takes a run out that ends while it waits to be taken.
func (w *warmth) watch(id string, l *launch) {
	if _, ended := w.s.awaitEnd(l.run.id); !ended {
		return
	}
	w.mu.Lock()
	i := slices.Index(w.ready[id], l)
	if i >= 0 {
		w.ready[id] = slices.Delete(slices.Clone(w.ready[id]), i, i+1)
		w.fill(id)
	}
	w.mu.Unlock()
	if i < 0 {
		return
	}
	if err := l.rollBack(w.s.life); err != nil {
		w.s.cfg.Log.Error("end a sandbox that was ready", "run", l.run.id, "error", err)
	}
}

const (
	// departWait is how long makeRoom waits for sandboxes that are paused, but still hold what
	// they had: who paused them to make room has been told so already.
	departWait = 2 * time.Second
	departPoll = 5 * time.Millisecond
)

// makeRoom takes room for a run, in place of sandboxes that are only kept ready if need be.
func (s *Service) makeRoom(ctx context.Context, d demand, wait time.Duration) (at *place, err error) {
	if at, err = s.takeDeparted(ctx, d); err == nil {
		return at, nil
	}
	for fault.Is(err, fault.HostUnavailable) && s.warm.giveUp(ctx) {
		if at, err = s.room.take(ctx, d, 0); err == nil {
			return at, nil
		}
	}
	if wait <= 0 || !fault.Is(err, fault.HostUnavailable) {
		return nil, err
	}
	return s.room.take(ctx, d, wait)
}

// takeDeparted takes room at once, or as soon as those have gone who are on their way.
func (s *Service) takeDeparted(ctx context.Context, d demand) (at *place, err error) {
	ctx, cancel := context.WithTimeout(ctx, departWait)
	defer cancel()
	tick := time.NewTicker(departPoll)
	defer tick.Stop()
	for {
		more := s.room.awaits()
		if at, err = s.room.take(ctx, d, 0); !more || !fault.Is(err, fault.HostUnavailable) {
			return at, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}
