package sandbox

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	minWatchBackoff = 100 * time.Millisecond
	maxWatchBackoff = 5 * time.Second
	// reconcileWidth is how many leftovers are removed at a time.
	reconcileWidth = 4
)

// Reasons for what the host does not explain.
const (
	reasonMissing = "its host no longer has it, and cannot say why"
	reasonEnded   = "it ended by itself"
	reasonAdopted = "its host has it and the server had lost its record; its ports are private, and its labels and clocks are not known any more"
)

// watch keeps the store true to the host until ctx ends, or the host for good.
func (s *Service) watch(ctx context.Context) {
	backoff := minWatchBackoff
	for {
		synced, err := s.watchOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.hostGoes.Load() {
			s.log.DebugContext(ctx, "the host has ended its news", "error", err)
			return
		}
		if synced {
			backoff = minWatchBackoff
		}
		// Jitter, so that many do not come back to a restarted host at the same moment.
		wait := backoff/2 + rand.N(backoff/2)
		s.log.WarnContext(ctx, "lost the host's news; connecting again", "error", err, "wait", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		backoff = min(2*backoff, maxWatchBackoff)
	}
}

// watchOnce follows one stream of news. It reports whether it got as far as to know all.
func (s *Service) watchOnce(ctx context.Context) (synced bool, err error) {
	// Read before the stream opens: a sandbox that was running then and that the host does
	// not name is lost, whereas one that became running later may just not be named yet.
	before, err := s.store.List(ctx, Filter{})
	if err != nil {
		return false, err
	}
	seen := make(map[string]HostSandbox)
	err = s.host.Watch(ctx, func(ev HostEvent) error {
		switch {
		case ev.Synced:
			synced = true
			return s.reconcile(ctx, before, seen)
		case synced:
			return s.follow(ctx, ev.Sandbox)
		}
		seen[ev.Sandbox.ID] = ev.Sandbox
		return nil
	})
	return synced, err
}

// reconcile compares what the store knew before with all that the host has. The table in
// docs/architecture.md has every case.
func (s *Service) reconcile(ctx context.Context, before []Sandbox, seen map[string]HostSandbox) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(reconcileWidth)
	for _, row := range before {
		onHost, known := seen[row.ID]
		delete(seen, row.ID)
		if !known {
			onHost = lost(row.ID)
		}
		switch row.Status {
		case Starting, Pending:
			g.Go(func() error { s.noteFailedEnd(gctx, row.ID, s.removeLeftover(gctx, row.ID)); return nil })
		case Stopping:
			g.Go(func() error { s.noteFailedEnd(gctx, row.ID, s.resumeStop(gctx, row)); return nil })
		default:
			if err := s.follow(ctx, onHost); err != nil {
				return err
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, h := range seen {
		if err := s.adopt(ctx, h); err != nil {
			return err
		}
	}
	return s.snapshots.reconcile(ctx)
}

// adopt makes a row for a sandbox that its host has and nobody here knows, as after the
// database was restored from a copy: it may be somebody's work, and shall be seen. Nobody
// knows whether its ports were public, so they are not any more.
func (s *Service) adopt(ctx context.Context, h HostSandbox) error {
	_, err := s.store.Get(ctx, h.ID)
	if s.claims.has(h.ID) || !fault.Is(err, fault.NotFound) {
		return err // it came meanwhile
	}
	// A row goes after its sandbox, so what the host still has now was not just deleted.
	h, err = s.host.Get(ctx, h.ID)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	switch h.Status {
	case Running, Pausing, Paused, Resuming, Error:
	default:
		return nil // on its way out, or of a create whose row is about to go
	}
	host, err := s.hostInfo.get(ctx, s.host)
	if err != nil {
		return err
	}
	at := now()
	sb := Sandbox{ID: h.ID, OnTimeout: Pause, Template: h.Template, HostID: host.ID, CreatedAt: h.CreatedAt}
	if sb.CreatedAt.IsZero() {
		sb.CreatedAt = at
	}
	sb = sb.as(h)
	sb.LastActiveAt, sb.HostIP, sb.GuestIP = at, h.HostIP, h.GuestIP
	sb.Web = WebOptions{Private: true}.settings()
	if sb.Reason == "" {
		sb.Reason = reasonAdopted
	}
	s.log.WarnContext(ctx, "the host has a sandbox that nobody here knows; it is listed from now on", "sandbox", h.ID, "status", string(h.Status))
	return s.store.Insert(ctx, sb)
}

// noteFailedEnd says that a sandbox could not be ended now. One that cannot must not keep us
// from the news of the others; it is tried again with the next reconciliation.
func (s *Service) noteFailedEnd(ctx context.Context, id string, err error) {
	if err != nil && ctx.Err() == nil {
		s.log.ErrorContext(ctx, "could not end a sandbox that was left half done", "sandbox", id, "error", err)
	}
}

// removeLeftover removes a sandbox that a process began to create and died. Nobody was
// told its id.
func (s *Service) removeLeftover(ctx context.Context, id string) error {
	if s.claims.has(id) {
		return nil
	}
	// A create that has just finished is no leftover; the store decides.
	left, err := s.store.SetStatus(ctx, id, Stopping, "", now(), Starting, Pending)
	if err != nil || !left {
		return err
	}
	s.log.WarnContext(ctx, "removing a sandbox whose creation was cut off", "sandbox", id)
	return s.remove(ctx, id)
}

// resumeStop goes on with what a process that died, or a host that was away, left half
// done: a sandbox with a reason was ended by a clock, one without was being deleted.
func (s *Service) resumeStop(ctx context.Context, row Sandbox) error {
	if row.Reason != "" {
		return s.finish(ctx, row.ID, row.Reason)
	}
	return s.remove(ctx, row.ID)
}

// reconcile finishes what a process that died has left of snapshots, and holds the rows
// against what the host has.
func (x *Snapshots) reconcile(ctx context.Context) error {
	before, err := x.store.List(ctx)
	if err != nil {
		return err
	}
	onHost, err := x.host.List(ctx)
	if err != nil {
		return err
	}
	// Again: one that was made meanwhile is on the host and was not among the rows. And one
	// that somebody works on now, or did until a moment ago, is theirs.
	settled := make(map[string]SnapshotStatus, len(before))
	for _, row := range before {
		if !x.core.claims.has(row.ID) {
			settled[row.ID] = row.Status
		}
	}
	after, err := x.store.List(ctx)
	if err != nil {
		return err
	}
	unknown := make(map[string]HostSnapshot, len(onHost))
	for _, h := range onHost {
		unknown[h.ID] = h
	}
	for _, row := range after {
		if settled[row.ID] != row.Status {
			continue
		}
		onHost := SnapshotMissing
		if h, there := unknown[row.ID]; there {
			onHost = h.status()
		}
		if err := x.reconcileOne(ctx, row, onHost); err != nil {
			return err
		}
	}
	for _, row := range slices.Concat(before, after) {
		delete(unknown, row.ID)
	}
	for _, h := range unknown {
		if err := x.adopt(ctx, h); err != nil {
			return err
		}
	}
	x.keepWarm(ctx)
	return nil
}

// recheck holds the rows against what the host has, after a snapshot could not be used: the
// host may have found it damaged.
func (x *Snapshots) recheck(ctx context.Context) {
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := x.reconcile(ctx); err != nil {
		x.core.log.ErrorContext(ctx, "could not look at the host's snapshots; it is done with the next reconciliation", "error", err)
	}
}

// reconcileOne makes a row what its host says of the snapshot.
func (x *Snapshots) reconcileOne(ctx context.Context, row Snapshot, onHost SnapshotStatus) error {
	switch {
	case row.Status == SnapshotCreating, row.Status == SnapshotDeleting:
		// Nobody was told of one that was being created.
		if err := x.remove(ctx, row.ID); err != nil {
			x.core.log.ErrorContext(ctx, "could not remove a snapshot that was left half done", "snapshot", row.ID, "error", err)
		}
	case row.Status != onHost:
		if onHost != SnapshotReady {
			x.core.log.ErrorContext(ctx, "a snapshot cannot be used", "snapshot", row.ID, "name", row.Name, "status", string(onHost))
		}
		return x.store.SetStatus(ctx, row.ID, onHost, row.Status)
	}
	return nil
}

// status is that of the row of a snapshot that the host has.
func (h HostSnapshot) status() SnapshotStatus {
	if h.Damaged {
		return SnapshotDamaged
	}
	return SnapshotReady
}

// adopt makes a row for a snapshot that the host has and nobody here knows.
func (x *Snapshots) adopt(ctx context.Context, h HostSnapshot) error {
	if x.core.claims.has(h.ID) {
		return nil
	}
	host, err := x.core.hostInfo.get(ctx, x.core.host)
	if err != nil {
		return err
	}
	row := Snapshot{
		ID: h.ID, Name: h.ID, Status: h.status(), HostID: host.ID, SandboxID: h.SandboxID, Template: h.Template, CreatedAt: now(),
	}
	row.take(h)
	x.core.log.WarnContext(ctx, "the host has a snapshot that nobody here knows; it is listed from now on", "snapshot", h.ID)
	return x.store.Insert(ctx, row)
}
