package sandbox

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// flushInterval is how much activity a crash may forget.
const flushInterval = 3 * time.Second

// activity knows when each sandbox was last used. Every request would otherwise be a
// write to the database; so it is kept here and written now and then. It is safe for
// concurrent use.
type activity struct {
	now func() time.Time

	mu   sync.Mutex
	last map[string]time.Time // what the store does not know yet, and more
	// dirty is the ids whose last is newer than the store's.
	dirty map[string]bool
	// inUse counts the actions under way in a sandbox.
	inUse map[string]int
	// sealed is the sandboxes that nobody may begin to use any more.
	sealed map[string]bool
}

func newActivity() *activity {
	return &activity{
		now:    now,
		last:   make(map[string]time.Time),
		dirty:  make(map[string]bool),
		inUse:  make(map[string]int),
		sealed: make(map[string]bool),
	}
}

// touch notes that the sandbox is active now.
func (a *activity) touch(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.touchLocked(id)
}

func (a *activity) touchLocked(id string) {
	a.last[id] = a.now()
	a.dirty[id] = true
}

// begin notes that an action begins, unless the sandbox is sealed; the returned
// function, called once or more, notes that it ended.
func (a *activity) begin(id string) (end func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sealed[id] {
		return nil, false
	}
	a.touchLocked(id)
	a.inUse[id]++
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.inUse[id]--; a.inUse[id] <= 0 {
			delete(a.inUse, id)
		}
		a.touchLocked(id)
	}), true
}

// busy reports whether an action is under way.
func (a *activity) busy(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inUse[id] > 0
}

// seal makes begin refuse the sandbox, unless it was active after since: what decides
// that a sandbox is idle must not race with somebody who just came to use it.
func (a *activity) seal(id string, since time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inUse[id] > 0 || a.last[id].After(since) {
		return false
	}
	a.sealed[id] = true
	return true
}

// unseal ends seal.
func (a *activity) unseal(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sealed, id)
}

// overlay returns sb with the newest activity.
func (a *activity) overlay(sb Sandbox) Sandbox {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, ok := a.last[sb.ID]; ok && at.After(sb.LastActiveAt) {
		sb.LastActiveAt = at
	}
	if a.inUse[sb.ID] > 0 {
		sb.LastActiveAt = a.now()
	}
	return sb
}

// flush writes what the store does not know.
func (a *activity) flush(ctx context.Context, store Store) error {
	a.mu.Lock()
	batch := make(map[string]time.Time, len(a.dirty))
	for id := range a.dirty {
		batch[id] = a.last[id]
	}
	a.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	if err := store.Touch(ctx, batch); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, at := range batch {
		if !a.last[id].Equal(at) {
			continue // it was active again meanwhile
		}
		delete(a.dirty, id)
		// The store knows all of it now, and keeping it would keep every sandbox that
		// ever was.
		delete(a.last, id)
	}
	return nil
}

// flushUntilDone flushes now and then, and a last time when ctx ends.
func (a *activity) flushUntilDone(ctx context.Context, store Store, log *slog.Logger) error {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return a.flushLast(ctx, store)
		case <-tick.C:
			if err := a.flush(ctx, store); err != nil && ctx.Err() == nil {
				log.ErrorContext(ctx, "could not write when sandboxes were active; trying again", "error", err)
			}
		}
	}
}

// flushLast is flush for a ctx that has ended.
func (a *activity) flushLast(ctx context.Context, store Store) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return a.flush(ctx, store)
}
