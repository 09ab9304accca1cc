package sandbox

import (
	"context"
)

// keepWarm tells the host of which snapshots to keep sandboxes ready. The host knows ids
// only and forgets them with its restart: it is told again whenever it is back, or a name
// has come to mean another snapshot.
func (x *Snapshots) keepWarm(ctx context.Context) {
	if len(x.warm) == 0 {
		return
	}
	// One at a time, so that the last word is that of who looked last.
	select {
	case x.warming <- struct{}{}:
		defer func() { <-x.warming }()
	case <-ctx.Done():
		return
	}
	all, err := x.store.List(ctx)
	if err != nil {
		x.core.log.ErrorContext(ctx, "could not look for the snapshots to keep warm", "error", err)
		return
	}
	counts := make(map[string]int)
	for _, s := range all {
		if n := x.warm[s.Name]; n > 0 && s.Status == SnapshotReady {
			counts[s.ID] = n
		}
	}
	if err := x.host.SetWarm(ctx, counts); err != nil {
		x.core.log.ErrorContext(ctx, "could not tell the host what to keep warm", "error", err)
	}
}
