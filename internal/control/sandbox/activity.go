package sandbox

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"
)

const (
	// flushInterval is how much activity a crash may forget.
	flushInterval = 3 * time.Second
	// keepFor is how long activity is remembered that the store knows too. Whoever decides
	// that a sandbox is idle read its row a while ago, at most as long as a guest may take to
	// say what runs in it, and would miss what came and was written since.
	keepFor = time.Minute
)

// use is a way of using a sandbox. The table in docs/architecture.md says which is what.
type use int

const (
	// request is an action that ends by itself and soon, or that moves bytes: the sandbox is
	// not idle until its end, and a pause waits for that for a moment.
	request use = iota + 1
	// command is one in the foreground, which may take as long as it likes: the sandbox is
	// not idle until its end, but a pause does not wait for it.
	command
	// onlooking is a terminal, or following a process that somebody else started: what it
	// reads and writes is activity, its being open is none.
	onlooking
)

// activity knows when each sandbox was last used. Every request would otherwise be a
// write to the database; so it is kept here and written now and then. It is safe for
// concurrent use.
type activity struct {
	now func() time.Time

	mu   sync.Mutex
	last map[string]time.Time // what the store does not know yet, or not for long
	// dirty is the ids whose last is newer than the store's.
	dirty map[string]bool
	// inUse is the sandboxes in which actions are under way.
	inUse map[string]*usage
	// sealed counts those that keep others from beginning to use a sandbox.
	sealed map[string]int
}

// usage is the actions under way in one sandbox.
type usage struct {
	requests, commands int
	// quiet, unless nil, is closed when no request is under way any more.
	quiet chan struct{}
}

func newActivity() *activity {
	return &activity{
		now:    now,
		last:   make(map[string]time.Time),
		dirty:  make(map[string]bool),
		inUse:  make(map[string]*usage),
		sealed: make(map[string]int),
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
func (a *activity) begin(id string, kind use) (end func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sealed[id] > 0 {
		return nil, false
	}
	a.touchLocked(id)
	if kind == onlooking {
		return func() {}, true
	}
	a.count(id, kind, 1)
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.count(id, kind, -1)
		a.touchLocked(id)
	}), true
}

// count changes how many actions are under way. The caller holds a.mu.
func (a *activity) count(id string, kind use, by int) {
	u := a.inUse[id]
	if u == nil {
		u = &usage{}
		a.inUse[id] = u
	}
	if kind == request {
		u.requests += by
	} else {
		u.commands += by
	}
	if u.requests == 0 && u.quiet != nil {
		close(u.quiet)
		u.quiet = nil
	}
	if u.requests == 0 && u.commands == 0 {
		delete(a.inUse, id)
	}
}

// busy reports whether an action is under way.
func (a *activity) busy(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inUse[id] != nil
}

// seal makes begin refuse the sandbox, unless it was active after since: what decides
// that a sandbox is idle must not race with somebody who just came to use it.
func (a *activity) seal(id string, since time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inUse[id] != nil || a.last[id].After(since) {
		return false
	}
	a.sealed[id]++
	return true
}

// sealBusy is seal whatever goes on in the sandbox.
func (a *activity) sealBusy(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sealed[id]++
}

// drain waits until no request is under way in a sandbox, which is sealed, for at most d.
func (a *activity) drain(ctx context.Context, id string, d time.Duration) {
	a.mu.Lock()
	u := a.inUse[id]
	if u == nil || u.requests == 0 {
		a.mu.Unlock()
		return
	}
	if u.quiet == nil {
		u.quiet = make(chan struct{})
	}
	quiet := u.quiet
	a.mu.Unlock()
	limit := time.NewTimer(d)
	defer limit.Stop()
	select {
	case <-quiet:
	case <-limit.C:
	case <-ctx.Done():
	}
}

// unseal ends one seal.
func (a *activity) unseal(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sealed[id]--; a.sealed[id] <= 0 {
		delete(a.sealed, id)
	}
}

// overlay returns sb with the newest activity.
func (a *activity) overlay(sb Sandbox) Sandbox {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, ok := a.last[sb.ID]; ok && at.After(sb.LastActiveAt) {
		sb.LastActiveAt = at
	}
	if a.inUse[sb.ID] != nil {
		sb.LastActiveAt = a.now()
	}
	return sb
}

// flush writes what the store does not know.
func (a *activity) flush(ctx context.Context, store ClockStore) error {
	a.mu.Lock()
	batch := make(map[string]time.Time, len(a.dirty))
	for id := range a.dirty {
		batch[id] = a.last[id]
	}
	a.mu.Unlock()
	if len(batch) > 0 {
		if err := store.Touch(ctx, batch); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, at := range batch {
		if a.last[id].Equal(at) { // else it was active again meanwhile
			delete(a.dirty, id)
		}
	}
	// To keep all would keep every sandbox that ever was.
	old := a.now().Add(-keepFor)
	maps.DeleteFunc(a.last, func(id string, at time.Time) bool { return !a.dirty[id] && at.Before(old) })
	return nil
}

// flushUntilDone flushes now and then, and a last time when ctx ends.
func (a *activity) flushUntilDone(ctx context.Context, store ClockStore, log *slog.Logger) error {
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
func (a *activity) flushLast(ctx context.Context, store ClockStore) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return a.flush(ctx, store)
}
