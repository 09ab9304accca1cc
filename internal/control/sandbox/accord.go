package sandbox

import (
	"context"
	"log/slog"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// claim notes that this process works on a sandbox. The returned function ends that, and
// follows what the host has said meanwhile, when that is not what came of the work.
func (s *Service) claim(ctx context.Context, id string) (release func()) {
	s.claims.take(id)
	return func() {
		news := s.claims.release(id)
		if news == nil {
			return
		}
		ctx, cancel := detached(ctx)
		defer cancel()
		if err := s.follow(ctx, *news); err != nil {
			s.log.ErrorContext(ctx, "could not write down what the host says of a sandbox; it is done with the next reconciliation",
				"sandbox", id, "error", err)
		}
	}
}

// follow takes up what the host says of a sandbox, unless this process works on it.
func (s *Service) follow(ctx context.Context, news HostSandbox) error {
	if s.claims.keep(news) {
		return nil
	}
	row, err := s.store.Get(ctx, news.ID)
	if fault.Is(err, fault.NotFound) {
		return nil // it was deleted meanwhile
	}
	if err != nil || row.agrees(news) {
		return err
	}
	// An action may have begun since, and its status of passage be what was read. Without
	// this look a resume that follows its pause closely would be undone by the pause's news.
	if s.claims.keep(news) {
		return nil
	}
	// News wait in a queue and may be older than what was done since, so what counts is
	// what the host says now. It forgets those that have ended.
	h, err := s.host.Get(ctx, news.ID)
	switch {
	case err == nil:
	case news.Status == Stopped || news.Status == Error || s.hostGoes.Load():
		h = news
	case fault.Is(err, fault.NotFound):
		h = lost(news.ID)
	default:
		return err
	}
	return s.accord(ctx, row, h)
}

// settle makes the row of a sandbox with which something failed what the host says that it
// is now. When the host does not answer, the next reconciliation does it.
func (s *Service) settle(ctx context.Context, id, reason string) {
	err := s.trySettle(ctx, id, reason)
	if err != nil {
		s.log.ErrorContext(ctx, "could not find out what became of a sandbox; it is done with the next reconciliation",
			"sandbox", id, "error", err)
	}
}

func (s *Service) trySettle(ctx context.Context, id, reason string) error {
	row, err := s.store.Get(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	h, err := s.host.Get(ctx, id)
	if fault.Is(err, fault.NotFound) {
		h, err = lost(id), nil
	}
	if err != nil {
		return err
	}
	if h.Reason == "" {
		h.Reason = reason
	}
	return s.accord(ctx, row, h)
}

// lost is what is said of a sandbox that its host does not have.
func lost(id string) HostSandbox {
	return HostSandbox{ID: id, Status: Missing, Reason: reasonMissing}
}

// ended reports whether a sandbox is at an end.
func (s Status) ended() bool { return s == Stopped || s == Missing || s == Error }

// endedBefore reports whether the host's word is only that of an end that is known, whose
// first reason says most.
func (s *Sandbox) endedBefore(h HostSandbox) bool {
	return s.Status.ended() && h.Status.ended() && (s.Status != Missing || h.Status == Missing)
}

// agrees reports whether the host's word changes nothing.
func (s *Sandbox) agrees(h HostSandbox) bool {
	switch s.Status {
	case Pending, Starting, Stopping:
		return true // what becomes of it is decided here
	}
	switch h.Status {
	case Running, Pausing, Paused, Resuming, Stopped, Error, Missing:
		return (s.Status == h.Status || s.endedBefore(h)) && s.PausedAt.Equal(h.PausedAt)
	}
	return true // on its way; the next news will tell where to
}

// accord makes a row what the host says of its sandbox. The table in docs/architecture.md
// has every pair of the two.
func (s *Service) accord(ctx context.Context, row Sandbox, h HostSandbox) error {
	if row.agrees(h) {
		return nil
	}
	next := row.as(h)
	changed, err := s.store.Save(ctx, next, row.Status)
	if err != nil || !changed || next.Status == row.Status {
		return err
	}
	level := slog.LevelWarn
	if s.hostGoes.Load() || next.Status == Pausing || next.Status == Resuming {
		level = slog.LevelInfo // as it was asked to
	}
	s.log.Log(ctx, level, "a sandbox changed on its host", "sandbox", row.ID,
		"was", string(row.Status), "status", string(next.Status), "reason", next.Reason)
	if next.Status == Running {
		s.rearmClocks()
	}
	return nil
}

// as is the sandbox with what its host says of it.
func (s *Sandbox) as(h HostSandbox) Sandbox {
	next := *s
	next.UpdatedAt = now()
	next.PausedAt, next.SnapshotBytes = h.PausedAt, h.SnapshotBytes
	if s.endedBefore(h) {
		return next
	}
	next.Status = h.Status
	if h.Reason != "" || s.Status != Pausing || h.Status != Paused {
		next.Reason = h.Reason // but for the reason of a pause, which the host does not know
	}
	if next.Reason == "" && (h.Status == Stopped || h.Status == Error) {
		next.Reason = reasonEnded
	}
	if h.Runtime != "" {
		next.Runtime = h.Runtime
	}
	if h.Resources != (Resources{}) {
		next.Resources = h.Resources
	}
	if h.Status == Running {
		next.HostIP, next.GuestIP = h.HostIP, h.GuestIP
		if !h.StartedAt.IsZero() {
			next.StartedAt = h.StartedAt
		}
		next.restartClocks(s.Status)
	}
	return next
}

// restartClocks starts the clocks of a sandbox that runs again anew.
func (s *Sandbox) restartClocks(was Status) {
	switch was {
	case Paused, Resuming, Error:
		s.LastActiveAt, s.DeadlineFrom = s.UpdatedAt, s.UpdatedAt
	case Pausing:
		s.LastActiveAt = s.UpdatedAt // a deadline has passed all the same
	}
}
