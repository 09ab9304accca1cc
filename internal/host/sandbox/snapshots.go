package sandbox

import (
	"context"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// Snapshots is the part of a Service that is about writing down sandboxes that go on, and
// making others from that. It is safe for concurrent use.
type Snapshots struct{ s *Service }

// Snapshots returns the snapshots of this host.
func (s *Service) Snapshots() Snapshots { return Snapshots{s} }

// What begins the ids of the snapshots that the host makes for itself.
const (
	pausePrefix = "pa"
	forkPrefix  = "fk"
)

// What ids of snapshots look like. Others may be made from those of the first form.
var (
	snapshotPattern = regexp.MustCompile(`^sn[a-z0-9]{20}$`)
	pausePattern    = regexp.MustCompile(`^` + pausePrefix + `[a-z0-9]{20}$`)
	forkPattern     = regexp.MustCompile(`^` + forkPrefix + `[a-z0-9]{20}$`)
)

// imaging is a snapshot, under way, of a sandbox that goes on.
type imaging struct {
	operation
	e        *entry
	id       string
	kind     snapshot.Kind
	draft    *snapshot.Draft
	began    time.Time
	stopped  time.Duration
	snapshot snapshot.Snapshot
}

// imagePhases are its steps. The sandbox stands still from the second to the third.
var imagePhases = []phase[*imaging]{
	{"prepare", "tidy the guest up", func(i *imaging, ctx context.Context) error { return i.s.prepareGuest(ctx, i.e, true) }},
	{"checkpoint", "write its memory and files", func(i *imaging, ctx context.Context) error {
		return i.freeze(ctx, i.e, i.id, func(d *snapshot.Draft) { i.draft, i.began = d, time.Now() })
	}},
	{"thaw", "let it go on", func(i *imaging, ctx context.Context) error {
		err := i.s.cfg.Runtime.Thaw(context.WithoutCancel(ctx), i.e.run.id)
		i.stopped = time.Since(i.began)
		return err
	}},
	{"commit", "make the snapshot safe", func(i *imaging, ctx context.Context) error {
		var err error
		i.snapshot, err = i.draft.Commit(ctx, i.s.manifest(i.e, i.kind, i.stopped))
		return err
	}},
}

// image writes a running sandbox down and lets it go on.
func (s *Service) image(ctx context.Context, name, sandboxID, snapshotID string, kind snapshot.Kind) (snapshot.Snapshot, error) {
	e, ctx, done, err := s.claim(ctx, sandboxID, actSnapshot)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, pauseTimeout)
	defer cancel()
	i := &imaging{operation: operation{s: s, name: name}, e: e, id: snapshotID, kind: kind}
	if err := carryOut(ctx, &i.operation, i, imagePhases); err != nil {
		if undoErr := i.rollBack(ctx); undoErr != nil {
			s.cfg.Log.Error("undo snapshot", "operation", name, "sandbox", sandboxID, "error", undoErr)
			s.fail(e, "its snapshot failed, and it did not come back from that")
		}
		return snapshot.Snapshot{}, err
	}
	i.log(sandboxID, "snapshot", snapshotID, "bytes", i.snapshot.Bytes, "stopped", i.stopped)
	return i.snapshot, nil
}

// Create writes a running sandbox down, which goes on, for others to be made from. The
// caller chooses the snapshot's id.
func (x Snapshots) Create(ctx context.Context, sandboxID, id string) (snapshot.Snapshot, error) {
	if !snapshotPattern.MatchString(id) {
		return snapshot.Snapshot{}, fault.New(fault.InvalidRequest, "snapshot id %q must match %s", id, snapshotPattern)
	}
	snap, err := x.s.image(ctx, "snapshot", sandboxID, id, snapshot.Template)
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("snapshot sandbox: %w", err)
	}
	return snap, nil
}

// List returns the snapshots that sandboxes can be made from, and damaged ones that no
// sandbox needs.
func (x Snapshots) List() []snapshot.Snapshot {
	var list []snapshot.Snapshot
	for _, snap := range x.s.cfg.Snapshots.List() {
		if x.ours(snap) {
			list = append(list, snap)
		}
	}
	return list
}

// ours says whether a snapshot is one that others can be made from, or were to be, or one
// that is left of a sandbox and of no use. Of a damaged one only the id may be known.
func (x Snapshots) ours(snap snapshot.Snapshot) bool {
	if snap.Kind == snapshot.Template {
		return true
	}
	return snap.Damaged != "" && !x.needed(snap.ID)
}

// needed says whether a sandbox can be resumed from a snapshot, or could if that were whole.
func (x Snapshots) needed(id string) bool {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, e := range x.s.entries {
		if e.snapshot == id || e.draft == id || e.fork == id {
			return true
		}
	}
	return false
}

// Delete removes a snapshot. Sandboxes made from it do not need it any more. An unknown id
// is fault.NotFound.
func (x Snapshots) Delete(ctx context.Context, id string) error {
	snap, err := x.s.cfg.Snapshots.Get(id)
	if err == nil && !x.ours(snap) {
		err = noSnapshot(id)
	}
	if err != nil {
		return err
	}
	x.s.at("unsnapshot.begun")
	if err := x.s.cfg.Snapshots.Remove(id); err != nil {
		return err
	}
	x.s.at("unsnapshot.removed")
	return x.s.warm.drop(ctx, id)
}

func noSnapshot(id string) error {
	return fault.New(fault.NotFound, "snapshot %q does not exist on this host", id)
}

// get returns a snapshot that a sandbox is to be made from.
func (x Snapshots) get(id string) (snapshot.Snapshot, error) {
	snap, err := x.s.cfg.Snapshots.Get(id)
	switch {
	case fault.Is(err, fault.NotFound), err == nil && !x.ours(snap):
		return snapshot.Snapshot{}, noSnapshot(id)
	case err != nil:
		return snapshot.Snapshot{}, err
	case snap.Damaged != "":
		return snapshot.Snapshot{}, fault.New(fault.Internal, "snapshot %s is damaged (%s) and cannot be used; delete it and make another", id, snap.Damaged)
	}
	return snap, nil
}

// randomName is 20 characters that nobody can guess, in lower case.
func randomName() string { return strings.ToLower(rand.Text())[:20] }
