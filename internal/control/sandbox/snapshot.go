package sandbox

import (
	"context"
	"regexp"
	"slices"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// SnapshotStatus is where a snapshot is in its life.
type SnapshotStatus string

// The statuses of a snapshot.
const (
	SnapshotCreating SnapshotStatus = "creating"
	SnapshotReady    SnapshotStatus = "ready"
	SnapshotDeleting SnapshotStatus = "deleting" // it has no name any more
	SnapshotMissing  SnapshotStatus = "missing"  // its host has lost it
	SnapshotDamaged  SnapshotStatus = "damaged"  // its host has it, and not as it was written
)

// Snapshot is a sandbox as it was at one moment, to make others from. It is a value.
type Snapshot struct {
	ID        string
	Name      string // the id, when it has none of its own
	Status    SnapshotStatus
	HostID    string
	SandboxID string // what it was made of
	Template  string // what that was made from
	Resources Resources
	User      string // default user
	SizeBytes int64
	Stopped   time.Duration // how long the sandbox stood still for it
	CreatedAt time.Time
}

// SnapshotStore keeps snapshots. Its not_found means that there is no such row.
type SnapshotStore interface {
	// Insert is fault.Conflict when the name is taken.
	Insert(ctx context.Context, s Snapshot) error
	// List returns all snapshots, newest first.
	List(ctx context.Context) ([]Snapshot, error)
	// Find returns the snapshot that has a name, or an id, and is listed.
	Find(ctx context.Context, nameOrID string) (Snapshot, error)
	// Promote makes a snapshot that is being created ready under a name. Another one that
	// has the name loses it and is Deleting from then on. It reports whether s was still
	// being created.
	Promote(ctx context.Context, s Snapshot, name string) (bool, error)
	// Retire takes a snapshot's name away and makes it Deleting.
	Retire(ctx context.Context, id string) error
	// SetStatus changes the status if it is from.
	SetStatus(ctx context.Context, id string, to, from SnapshotStatus) error
	Delete(ctx context.Context, id string) error
}

// Snapshots is the snapshots of sandboxes, the templates that they are, and copies. Get it
// from Service.Snapshots. It is safe for concurrent use.
type Snapshots struct {
	core  *Service
	store SnapshotStore
	host  HostSnapshots
	warm  map[string]int
	// warming is held while the host is told what to keep warm.
	warming chan struct{}

	retention Retention
	// made holds a token when there is one more snapshot to hold against retention.
	made chan struct{}
	uses uses
}

// SnapshotOptions is what the creator of a snapshot may say.
type SnapshotOptions struct {
	SandboxID string
	Name      string // empty: its id
	Overwrite bool   // whether a snapshot of that name is replaced
}

const (
	snapshotPrefix = "sn"
	idForm         = `^(sb|sn)[a-z0-9]{20}$`
)

var (
	namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	idPattern   = regexp.MustCompile(idForm)
)

func (o SnapshotOptions) validate(host HostInfo) error {
	switch {
	case o.Name == "":
		return nil
	case !namePattern.MatchString(o.Name):
		return fault.New(fault.InvalidRequest, "field \"name\" must be 1 to 63 lower-case letters, digits and . _ -, and begin with a letter or digit")
	case o.Name == DefaultTemplate || slices.Contains(host.Templates, o.Name):
		return fault.New(fault.InvalidRequest, "field \"name\" is %q, which is the name of a template of the server itself; choose another", o.Name)
	case idPattern.MatchString(o.Name):
		return fault.New(fault.InvalidRequest, "field \"name\" looks like an id; choose another")
	}
	return nil
}

// Create makes a snapshot of a running sandbox, which keeps running. When ctx ends before
// that, or anything fails, nothing of it is left, and one that it was to replace stays.
func (x *Snapshots) Create(ctx context.Context, o SnapshotOptions) (Snapshot, error) {
	host, err := x.core.hostInfo.get(ctx, x.core.host)
	if err != nil {
		return Snapshot{}, err
	}
	if err := o.validate(host); err != nil {
		return Snapshot{}, err
	}
	done, err := x.core.use(ctx, o.SandboxID, request)
	if err != nil {
		return Snapshot{}, err
	}
	defer done()
	sb, err := x.core.store.Get(ctx, o.SandboxID)
	if err != nil {
		return Snapshot{}, err
	}
	snap := Snapshot{
		ID: snapshotPrefix + randomName(idLength), Status: SnapshotCreating, HostID: sb.HostID,
		SandboxID: sb.ID, Template: sb.Template, Resources: sb.Resources, CreatedAt: now(),
	}
	if o.Name == "" {
		o.Name = snap.ID
	}
	snap.Name = o.Name
	if o.Overwrite {
		snap.Name = snap.ID // until it is complete the name is the old one's
	}
	x.core.claims.take(snap.ID)
	defer x.core.claims.release(snap.ID)
	if err := x.store.Insert(ctx, snap); err != nil {
		return Snapshot{}, err
	}
	if err := x.write(ctx, &snap, o.Name); err != nil {
		x.undo(ctx, snap.ID)
		return Snapshot{}, err
	}
	x.settleLater(ctx)
	x.retainSoon()
	return snap, nil
}

// write has the host make a snapshot and gives it its name.
func (x *Snapshots) write(ctx context.Context, snap *Snapshot, name string) error {
	made, err := x.host.Create(ctx, snap.SandboxID, snap.ID)
	if err != nil {
		return err
	}
	snap.take(made)
	snap.Status, snap.Name = SnapshotReady, name
	if err := ctx.Err(); err != nil {
		return err // nobody hears of it
	}
	ok, err := x.store.Promote(ctx, *snap, name)
	if err != nil {
		return err
	}
	if !ok {
		return fault.New(fault.Conflict, "snapshot %q was deleted or replaced while it was made", name)
	}
	return nil
}

// take takes over what only the host knows of a snapshot.
func (s *Snapshot) take(h HostSnapshot) {
	s.User, s.SizeBytes, s.Stopped = h.User, h.SizeBytes, h.Stopped
	if h.Resources != (Resources{}) {
		s.Resources = h.Resources
	}
	if !h.CreatedAt.IsZero() {
		s.CreatedAt = h.CreatedAt
	}
}

func (x *Snapshots) undo(ctx context.Context, id string) {
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := x.remove(ctx, id); err != nil {
		x.core.log.ErrorContext(ctx, "could not remove a snapshot whose creation failed; it is done with the next reconciliation",
			"snapshot", id, "error", err)
	}
}

// settleLater removes the snapshots that have lost their names, and tells the host what to
// keep warm now. What fails is done with the next reconciliation.
func (x *Snapshots) settleLater(ctx context.Context) {
	ctx, cancel := detached(ctx)
	defer cancel()
	all, err := x.store.List(ctx)
	if err != nil {
		x.core.log.ErrorContext(ctx, "could not look for snapshots to remove", "error", err)
		return
	}
	for _, s := range all {
		if s.Status != SnapshotDeleting || x.core.claims.has(s.ID) {
			continue
		}
		if err := x.remove(ctx, s.ID); err != nil {
			x.core.log.ErrorContext(ctx, "could not remove a snapshot that was replaced", "snapshot", s.ID, "error", err)
		}
	}
	x.keepWarm(ctx)
}

// remove removes a snapshot from its host and forgets it. It may be repeated.
func (x *Snapshots) remove(ctx context.Context, id string) error {
	if err := x.store.Retire(ctx, id); err != nil {
		return err
	}
	if err := x.host.Delete(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return x.store.Delete(ctx, id)
}

// Delete removes a snapshot by its name or id. It goes on without its caller.
func (x *Snapshots) Delete(ctx context.Context, nameOrID string) error {
	snap, err := x.Find(ctx, nameOrID)
	if err != nil {
		return err
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	x.core.claims.take(snap.ID)
	defer x.core.claims.release(snap.ID)
	if err := x.remove(ctx, snap.ID); err != nil {
		return err
	}
	x.keepWarm(ctx)
	return nil
}

// Find returns a snapshot by its name or id.
func (x *Snapshots) Find(ctx context.Context, nameOrID string) (Snapshot, error) {
	return x.store.Find(ctx, nameOrID)
}

// List returns the snapshots that have a name, newest first.
func (x *Snapshots) List(ctx context.Context) ([]Snapshot, error) {
	all, err := x.store.List(ctx)
	return slices.DeleteFunc(all, func(s Snapshot) bool { return !s.Status.Listed() }), err
}

// Listed reports whether users see a snapshot in that status.
func (s SnapshotStatus) Listed() bool {
	return s == SnapshotReady || s == SnapshotMissing || s == SnapshotDamaged
}

// resolve finds the snapshot that a template's name means. A zero Snapshot: it is one of
// the host's own, or the host is to say that it does not know it.
func (x *Snapshots) resolve(ctx context.Context, template string, host HostInfo) (Snapshot, error) {
	if template == "" || template == DefaultTemplate || slices.Contains(host.Templates, template) {
		return Snapshot{}, nil
	}
	snap, err := x.store.Find(ctx, template)
	if fault.Is(err, fault.NotFound) {
		return Snapshot{}, nil
	}
	switch {
	case err == nil && snap.Status == SnapshotMissing:
		err = fault.New(fault.NotFound, "snapshot %q is lost: its host no longer has it; delete it and make a new one", snap.Name)
	case err == nil && snap.Status == SnapshotDamaged:
		err = fault.New(fault.Internal, "snapshot %q is damaged: what lies on its host's disk is not what was written; delete it and make a new one", snap.Name)
	}
	return snap, err
}

// sized returns the size of a sandbox that is made from the snapshot, of which a creator
// can only ask for the same.
func (s *Snapshot) sized(asked Resources) (Resources, error) {
	for _, f := range []struct {
		field     string
		asked, is int
	}{
		{"vcpus", asked.VCPUs, s.Resources.VCPUs},
		{"memory_mb", asked.MemoryMB, s.Resources.MemoryMB},
		{"disk_size_mb", asked.DiskMB, s.Resources.DiskMB},
	} {
		if f.asked != 0 && f.asked != f.is {
			return Resources{}, fault.New(fault.InvalidRequest,
				"field %q is %d, and a sandbox made from snapshot %q has the snapshot's %d; leave the field out", f.field, f.asked, s.Name, f.is)
		}
	}
	return s.Resources, nil
}

// OwnTemplate is a template that the server brings itself.
type OwnTemplate struct {
	Name      string
	Resources Resources // what a sandbox gets whose creator does not say
}

// Own returns the templates that the server brings itself.
func (x *Snapshots) Own(ctx context.Context) ([]OwnTemplate, error) {
	host, err := x.core.hostInfo.get(ctx, x.core.host)
	if err != nil {
		return nil, err
	}
	size := Options{}.withDefaults(host.Max).Resources
	own := make([]OwnTemplate, len(host.Templates))
	for i, name := range host.Templates {
		own[i] = OwnTemplate{Name: name, Resources: size}
	}
	return own, nil
}
