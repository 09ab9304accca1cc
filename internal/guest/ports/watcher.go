package ports

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How often the tables are looked at.
const (
	// idlePause is the rule. It bounds how long a new server on loopback has to wait for
	// its forwarding.
	idlePause = time.Second
	// busyPause is for a while after a change, when more of them are likely.
	busyPause = 250 * time.Millisecond
	busyTime  = 10 * time.Second
	// heldPause is while something is forwarded: a server that goes wants its port back
	// soon, also when its process stays, whose end would be seen at once.
	heldPause = 500 * time.Millisecond
	// shareOfTime keeps the cost of looking under 0.2 % of a core, unless there are more
	// than thousands of sockets: the pause is at least this many times as long as a look.
	// One that was held up by other work says nothing, so the quickest of a few counts.
	shareOfTime = 500
	costLooks   = 4
	maxPause    = 2 * time.Second
	// minGap is between two looks that somebody asked for.
	minGap = 5 * time.Millisecond

	// retryPause is how long a forwarding that could not be set up waits for its next try.
	retryPause = 5 * time.Second
	// settleReads bounds how often a change is read again before it is believed.
	settleReads = 3
)

// watcher is one run of a PortSubsystem. Its methods are for one goroutine.
type watcher struct {
	subsystem *PortSubsystem
	table     *table
	// wake asks for a look at once. It holds one value.
	wake chan struct{}

	// known and fresh are the servers' listeners, sorted, as of the last look and of this
	// one. They take turns, so that a look allocates nothing.
	known, fresh []listener
	changed      time.Time // when known last changed
	looked       time.Time // when the last look ended
	retry        time.Time // when to try again what failed; zero: nothing failed
	// costs are how long the last looks took, in a ring; looks counts them.
	costs [costLooks]time.Duration
	looks int

	forwards map[netip.AddrPort]*forward // by the address outside
	relays   *relays
	wg       sync.WaitGroup
}

func newWatcher(s *PortSubsystem, t *table) *watcher {
	return &watcher{
		subsystem: s, table: t,
		wake:     make(chan struct{}, 1),
		forwards: make(map[netip.AddrPort]*forward),
		relays:   newRelays(s.limits),
	}
}

// watch looks and forwards until ctx ends; then it gives everything back.
func (w *watcher) watch(ctx context.Context) {
	defer w.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			timer.Reset(max(0, minGap-time.Since(w.looked)))
			continue
		case done := <-w.subsystem.asks:
			w.step(ctx)
			close(done)
		case <-timer.C:
			w.step(ctx)
		}
		timer.Reset(w.pause())
	}
}

// step is one look and what follows from it.
func (w *watcher) step(ctx context.Context) {
	w.relays.cutSilent()
	w.relays.takeSample()
	began := time.Now()
	changed, err := w.look()
	now := time.Now()
	w.looked = now
	w.costs[w.looks%costLooks] = now.Sub(began)
	w.looks++
	if err != nil {
		w.subsystem.cfg.Logger.ErrorContext(ctx, "look for listening ports", "err", err)
		return
	}
	if changed {
		w.changed = now
	}
	if changed || !w.retry.IsZero() && now.After(w.retry) {
		w.reconcile(ctx)
	}
	if changed {
		w.subsystem.signals.tell()
	}
}

func (w *watcher) pause() time.Duration {
	pause := idlePause
	switch {
	case w.looked.Sub(w.changed) < busyTime:
		pause = busyPause
	case len(w.forwards) > 0:
		pause = heldPause
	}
	return min(max(pause, slices.Min(w.costs[:])*shareOfTime), maxPause)
}

// look reads the tables and says whether the servers' listeners are others than before.
// The kernel writes a long table in pieces and may leave a line out when a socket goes
// between two of them, so a change counts only once two looks agree.
func (w *watcher) look() (changed bool, err error) {
	if err := w.refresh(); err != nil {
		return false, err
	}
	if slices.Equal(w.fresh, w.known) {
		return false, nil
	}
	last := slices.Clone(w.fresh)
	for range settleReads {
		if err := w.refresh(); err != nil {
			return false, err
		}
		if slices.Equal(w.fresh, last) {
			break
		}
		last = append(last[:0], w.fresh...)
	}
	if slices.Equal(w.fresh, w.known) {
		return false, nil
	}
	w.known, w.fresh = w.fresh, w.known
	return true, nil
}

// refresh reads the servers' listeners into fresh: all but the daemon's own.
func (w *watcher) refresh() error {
	list, err := w.table.read(w.fresh[:0])
	if err != nil {
		return err
	}
	kept := list[:0]
	for _, l := range list {
		if _, ours := w.forwards[l.addr]; !ours && l.addr.Port() != w.subsystem.cfg.Own {
			kept = append(kept, l)
		}
	}
	sortListeners(kept)
	w.fresh = kept
	return nil
}

// reconcile makes the forwards what the known listeners call for. What is no longer called
// for goes first: the port may be wanted by the server that takes its place.
func (w *watcher) reconcile(ctx context.Context) {
	w.retry = time.Time{}
	cfg := w.subsystem.cfg
	if cfg.Interface == "" {
		return
	}
	outside, err := addresses(cfg.Interface)
	if err != nil {
		cfg.Logger.WarnContext(ctx, "forward ports: no address to forward from", "interface", cfg.Interface, "err", err)
		w.retry = time.Now().Add(retryPause)
	}
	wanted := wantedForwards(w.known, outside)
	for at, f := range w.forwards {
		if wanted[at] != f.target {
			f.close()
			delete(w.forwards, at)
		}
	}
	var opened []*forward
	for at, target := range wanted {
		if _, open := w.forwards[at]; open {
			continue
		}
		f, err := w.open(ctx, at, target)
		if err != nil {
			cfg.Logger.DebugContext(ctx, "forward port", "outside", at, "err", err)
			w.retry = time.Now().Add(retryPause)
			continue
		}
		w.forwards[at] = f
		opened = append(opened, f)
	}
	held := make(map[netip.AddrPort]struct{}, len(w.forwards))
	for at := range w.forwards {
		held[at] = struct{}{}
	}
	w.subsystem.publish(held)
	w.watchOwners(ctx, opened)
}

// close gives back everything that the run has.
func (w *watcher) close() {
	for _, f := range w.forwards {
		f.close()
	}
	w.wg.Wait() // relays and the rest have ended with the context
	w.table.close()
	w.subsystem.publish(nil)
}
