package sandbox

import (
	"context"
	"log/slog"
	"math/rand/v2"
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

// reconcile compares what the store knew before with all that the host has.
func (s *Service) reconcile(ctx context.Context, before []Sandbox, seen map[string]HostSandbox) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(reconcileWidth)
	for _, row := range before {
		onHost, known := seen[row.ID]
		delete(seen, row.ID)
		switch {
		case row.Status == Starting || row.Status == Pending:
			g.Go(func() error { s.noteFailedEnd(gctx, row.ID, s.removeLeftover(gctx, row.ID)); return nil })
		case row.Status == Stopping:
			g.Go(func() error { s.noteFailedEnd(gctx, row.ID, s.resumeStop(gctx, row)); return nil })
		case known:
			if err := s.follow(ctx, onHost); err != nil {
				return err
			}
		case row.Status == Running:
			lost, err := s.store.SetStatus(ctx, row.ID, Missing, reasonMissing, now(), Running)
			if err != nil {
				return err
			}
			if lost {
				s.log.ErrorContext(ctx, "a sandbox is missing on its host", "sandbox", row.ID)
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for id := range seen {
		if _, err := s.store.Get(ctx, id); fault.Is(err, fault.NotFound) && !s.claimed(id) {
			// It may be somebody's work whose row was lost, so it is not ours to destroy.
			s.log.WarnContext(ctx, "the host has a sandbox that nobody here knows; it is left alone", "sandbox", id)
		}
	}
	return nil
}

// noteFailedEnd says that a sandbox could not be ended now. One that cannot must not keep us
// from the news of the others; it is tried again with the next reconciliation.
func (s *Service) noteFailedEnd(ctx context.Context, id string, err error) {
	if err != nil && ctx.Err() == nil {
		s.log.ErrorContext(ctx, "could not end a sandbox that was left half done", "sandbox", id, "error", err)
	}
}

// follow writes down what the host says of a sandbox that the store believes running, or
// believed to be lost.
func (s *Service) follow(ctx context.Context, h HostSandbox) error {
	var err error
	var changed bool
	reason := h.Reason
	switch h.Status {
	case Running:
		changed, err = s.store.SetStatus(ctx, h.ID, Running, "", now(), Missing)
	case Stopped, Error:
		if reason == "" {
			reason = reasonEnded
		}
		changed, err = s.store.SetStatus(ctx, h.ID, h.Status, reason, now(), Running, Missing)
	}
	if changed {
		level := slog.LevelWarn
		if s.hostGoes.Load() {
			level = slog.LevelInfo // as it was asked to
		}
		s.log.Log(ctx, level, "a sandbox changed on its host", "sandbox", h.ID, "status", string(h.Status), "reason", reason)
	}
	return err
}

// removeLeftover removes a sandbox that a process began to create and died. Nobody was
// told its id.
func (s *Service) removeLeftover(ctx context.Context, id string) error {
	if s.claimed(id) {
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
