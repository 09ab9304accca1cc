package sandbox

import (
	"context"
	"sync"
	"time"
)

// Retention says which snapshots the server removes by itself. Zero: none.
type Retention struct {
	// MaxAge is how old a snapshot may become.
	MaxAge time.Duration
	// MaxCount is how many may be kept, of all together; the newest ones are.
	MaxCount int
}

// retainEvery is how often snapshots are looked for that have become too old.
const retainEvery = time.Minute

func (r Retention) wanted() bool { return r.MaxAge > 0 || r.MaxCount > 0 }

// over reports whether a snapshot is too old, or has too many newer ones.
func (r Retention) over(s Snapshot, newer int, at time.Time) bool {
	return r.MaxAge > 0 && at.Sub(s.CreatedAt) > r.MaxAge || r.MaxCount > 0 && newer >= r.MaxCount
}

// runRetention removes what is not to be kept until ctx ends.
func (x *Snapshots) runRetention(ctx context.Context) {
	if !x.retention.wanted() {
		return
	}
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		if err := x.retain(ctx); err != nil && ctx.Err() == nil {
			x.core.log.ErrorContext(ctx, "could not remove snapshots that are too old or too many; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-x.made:
		}
	}
}

// retainSoon has what is too much removed now that there is one more.
func (x *Snapshots) retainSoon() {
	select {
	case x.made <- struct{}{}:
	default: // it is already asked for
	}
}

// retain removes the snapshots that are too old or too many. One that is kept warm, that a
// sandbox is being made from, or that there is a sandbox of, is in use and stays.
func (x *Snapshots) retain(ctx context.Context) error {
	all, err := x.List(ctx)
	if err != nil {
		return err
	}
	rows, err := x.core.store.List(ctx, Filter{})
	if err != nil {
		return err
	}
	used := make(map[string]bool)
	for _, row := range rows {
		if !row.Status.ended() {
			used[row.Template] = true
		}
	}
	for newer, snap := range all {
		if !x.retention.over(snap, newer, now()) || used[snap.Name] || x.warm[snap.Name] > 0 {
			continue
		}
		if err := x.removeUnused(ctx, snap); err != nil {
			return err
		}
	}
	return nil
}

// removeUnused removes a snapshot unless a sandbox is being made from it.
func (x *Snapshots) removeUnused(ctx context.Context, snap Snapshot) error {
	left, ok := x.uses.leave(snap.ID)
	if !ok {
		return nil
	}
	defer left()
	x.core.claims.take(snap.ID)
	defer x.core.claims.release(snap.ID)
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := x.remove(ctx, snap.ID); err != nil {
		return err
	}
	x.core.log.InfoContext(ctx, "removed a snapshot that was too old or one too many", "snapshot", snap.ID, "name", snap.Name,
		"created_at", snap.CreatedAt, "bytes", snap.SizeBytes)
	return nil
}

// uses knows from which snapshots sandboxes are being made, so that none is removed under
// them. The zero value is ready, and it is safe for concurrent use.
type uses struct {
	mu sync.Mutex
	// using counts who makes a sandbox from one; leavingNow: it is being removed.
	using map[string]int
}

const leavingNow = -1

// begin notes a use until done; false when the snapshot is being removed.
func (u *uses) begin(id string) (done func(), ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.using[id] == leavingNow {
		return nil, false
	}
	if u.using == nil {
		u.using = make(map[string]int)
	}
	u.using[id]++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.using[id]--; u.using[id] == 0 {
			delete(u.using, id)
		}
	}, true
}

// leave keeps others from using a snapshot until left; false when somebody does.
func (u *uses) leave(id string) (left func(), ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.using[id] != 0 {
		return nil, false
	}
	if u.using == nil {
		u.using = make(map[string]int)
	}
	u.using[id] = leavingNow
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.using, id)
	}, true
}
