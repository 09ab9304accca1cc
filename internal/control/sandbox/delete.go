package sandbox

import (
	"context"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Delete ends a sandbox in any status and forgets it. Two that delete the same sandbox
// at the same time both succeed; an id that nobody knows is not_found.
func (s *Service) Delete(ctx context.Context, id string) error {
	if _, err := s.store.Get(ctx, id); err != nil {
		return err
	}
	// From here on it goes to its end even if the client goes away: a sandbox half
	// destroyed helps nobody.
	ctx, cancel := detached(ctx)
	defer cancel()
	_, err := s.store.SetStatus(ctx, id, Stopping, "", now(), Pending, Starting, Running, Pausing, Paused, Resuming)
	if err != nil {
		// A full disk must not keep anybody from freeing it.
		s.log.ErrorContext(ctx, "could not write that a sandbox is being deleted; deleting it all the same", "sandbox", id, "error", err)
	}
	return s.remove(ctx, id)
}

// remove destroys a sandbox on its host and forgets it. It may be repeated.
func (s *Service) remove(ctx context.Context, id string) error {
	if err := s.destroy(ctx, id); err != nil {
		return err
	}
	_, err := s.store.Delete(ctx, id)
	return err
}

// destroy is Host.Destroy, to which a sandbox that the host does not have is destroyed.
func (s *Service) destroy(ctx context.Context, id string) error {
	if err := s.host.Destroy(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}
