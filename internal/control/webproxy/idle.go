package webproxy

import (
	"errors"
	"time"
)

const (
	// idleVisit is how long nothing may pass on a visit before it gives way to another that
	// there is no room for. WebSockets that ping do so more often; whoever merely holds
	// connections would otherwise keep all others out.
	idleVisit = time.Minute
	// scanStep is how often the visits of all sandboxes are looked through, at most.
	scanStep = 100 * time.Millisecond
)

// errReplaced is that a visit has given way to another.
var errReplaced = errors.New("nothing had passed for long, and another request needed the place")

// idlestLocked returns the visit on which nothing has passed for longest; nil when that is not
// long. The caller holds gu.mu.
func (gu *guest) idlestLocked() *visit {
	var idlest *visit
	latest := now().Add(-gu.idle).UnixNano()
	for v := range gu.open {
		if moved := v.moved.Load(); moved <= latest {
			idlest, latest = v, moved
		}
	}
	return idlest
}

// replaceLocked takes the place of a visit away, which who does so has then. The caller holds
// gu.mu, and cuts the visit afterwards.
func (gu *guest) replaceLocked(v *visit) {
	delete(gu.open, v)
	v.replaced = true
}

// makeRoom ends the visit, of all sandboxes', on which nothing has passed for longest. It
// reports whether there was one for which that is long.
func (g *guests) makeRoom() bool {
	at, last := now().UnixNano(), g.scanned.Load()
	if at-last < int64(scanStep) || !g.scanned.CompareAndSwap(last, at) {
		return false
	}
	var out *visit
	for _, gu := range g.all() {
		gu.mu.Lock()
		if v := gu.idlestLocked(); v != nil && (out == nil || v.moved.Load() < out.moved.Load()) {
			out = v
		}
		gu.mu.Unlock()
	}
	if out == nil {
		return false
	}
	out.guest.mu.Lock()
	_, there := out.guest.open[out]
	if there {
		out.guest.replaceLocked(out)
		g.room.give()
	}
	out.guest.mu.Unlock()
	if there {
		out.cut(errReplaced)
	}
	return there
}
