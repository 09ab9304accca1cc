package webproxy

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// factsAge is how long what the store says of a sandbox is believed. Changes are told, so
// this is only for those that another process makes.
const factsAge = time.Second

// guests is what is known of sandboxes that were asked for lately. It is bounded: those
// that nobody talks to are forgotten, the one not asked for longest first. It is safe for
// concurrent use.
type guests struct {
	maxOpen int
	rate    float64
	room    *room
	// idle is how long nothing has passed on a visit that may give way to another.
	idle time.Duration
	// scanned is when it was looked for room last, in nanoseconds since 1970.
	scanned atomic.Int64

	mu   sync.Mutex
	byID map[string]*list.Element // of *guest
	// recent has the one that was asked for last in front.
	recent *list.List
}

// newGuests bounds the visits of one sandbox by maxOpen, and by half of what room has: two
// of them must not keep the visitors of all others out.
func newGuests(maxOpen int, rate float64, room *room) *guests {
	if room.max > 0 {
		maxOpen = min(maxOpen, max(int(room.max)/2, 1))
	}
	return &guests{maxOpen: maxOpen, rate: rate, room: room, idle: idleVisit, byID: make(map[string]*list.Element), recent: list.New()}
}

// get returns what is known of a sandbox, nil when nothing is.
func (g *guests) get(id string) *guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.byID[id]
	if e == nil {
		return nil
	}
	g.recent.MoveToFront(e)
	return e.Value.(*guest)
}

// learn notes what the store says of a sandbox, as of at.
func (g *guests) learn(sb sandbox.Sandbox, at time.Time) *guest {
	g.mu.Lock()
	e := g.byID[sb.ID]
	if e == nil {
		e = g.recent.PushFront(newGuest(sb.ID, g))
		g.byID[sb.ID] = e
		g.trim()
	}
	g.mu.Unlock()
	gu := e.Value.(*guest)
	gu.mu.Lock()
	defer gu.mu.Unlock()
	gu.facts, gu.factsAt = sb, at
	return gu
}

// trim forgets guests beyond the bound. The caller holds g.mu.
func (g *guests) trim() {
	for e := g.recent.Back(); e != nil && len(g.byID) > maxGuests; {
		gu, before := e.Value.(*guest), e.Prev()
		if !gu.busy() {
			g.recent.Remove(e)
			delete(g.byID, gu.id)
		}
		e = before
	}
}

// forget makes the next request ask the store again.
func (g *guests) forget(id string) {
	if gu := g.get(id); gu != nil {
		gu.mu.Lock()
		defer gu.mu.Unlock()
		gu.factsAt = time.Time{}
	}
}

// reset cuts every connection to a sandbox.
func (g *guests) reset(id string) {
	if gu := g.get(id); gu != nil {
		gu.reset()
	}
}

func (g *guests) remove(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.byID[id]; e != nil {
		g.recent.Remove(e)
		delete(g.byID, id)
	}
}

// all returns those that are known now.
func (g *guests) all() []*guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := make([]*guest, 0, len(g.byID))
	for e := g.recent.Front(); e != nil; e = e.Next() {
		found = append(found, e.Value.(*guest))
	}
	return found
}

func (g *guests) resetAll() {
	for _, gu := range g.all() {
		gu.reset()
	}
}

// guest is one sandbox: what the store says of it, who talks to it, and how much.
type guest struct {
	id      string
	maxOpen int
	idle    time.Duration
	room    *room
	stats   stats
	// touched is when its activity was last told, in nanoseconds since 1970.
	touched atomic.Int64

	mu      sync.Mutex
	facts   sandbox.Sandbox
	factsAt time.Time
	bucket  bucket
	// open is what is under way, each with what cuts it.
	open map[*visit]struct{}
	// waiting is how many requests wait for the sandbox to wake.
	waiting int
}

func newGuest(id string, g *guests) *guest {
	return &guest{id: id, maxOpen: g.maxOpen, idle: g.idle, room: g.room, bucket: newBucket(g.rate), open: make(map[*visit]struct{})}
}

// visit is one request, or an upgraded connection, under way.
type visit struct {
	guest *guest
	cut   func(cause error)
	// moved is when something passed last, in nanoseconds since 1970.
	moved atomic.Int64
	// replaced is whether another visit has its place. It is guarded by guest.mu.
	replaced bool
}

// known returns what the store said of the sandbox, unless that is too old.
func (gu *guest) known() (sandbox.Sandbox, bool) {
	gu.mu.Lock()
	defer gu.mu.Unlock()
	return gu.facts, time.Since(gu.factsAt) < factsAge
}

// enter begins a visit; cut, called at most once and perhaps after leave, must end it. It
// fails when there are too many or they come too fast. Where there are too many, the one gives
// way on which nothing has passed for longest, if that is long.
func (gu *guest) enter(cut func(cause error)) (*visit, error) {
	gu.mu.Lock()
	v, out, err := gu.enterLocked(cut)
	gu.mu.Unlock()
	if out != nil {
		out.cut(errReplaced)
	}
	return v, err
}

// enterLocked is enter; out is the visit whose place the new one has. The caller holds gu.mu.
func (gu *guest) enterLocked(cut func(cause error)) (v, out *visit, err error) {
	if len(gu.open)+gu.waiting >= gu.maxOpen {
		if out = gu.idlestLocked(); out == nil {
			return nil, nil, errTooMany
		}
	}
	if !gu.bucket.take(now()) {
		return nil, nil, errTooFast
	}
	if out == nil && !gu.room.take() {
		if out = gu.idlestLocked(); out == nil {
			return nil, nil, errFull
		}
	}
	if out != nil {
		gu.replaceLocked(out)
	}
	v = &visit{guest: gu, cut: cut}
	v.moved.Store(now().UnixNano())
	gu.open[v] = struct{}{}
	return v, out, nil
}

// wait begins to wait for the sandbox to wake, unless too many do. It is over when the
// returned function is called. Those who wait are no visits, which the pause that they wait
// for would cut.
func (gu *guest) wait() (done func(), err error) {
	gu.mu.Lock()
	defer gu.mu.Unlock()
	if len(gu.open)+gu.waiting >= gu.maxOpen {
		return nil, errTooMany
	}
	if !gu.room.take() {
		return nil, errFull
	}
	gu.waiting++
	return func() {
		gu.room.give()
		gu.mu.Lock()
		defer gu.mu.Unlock()
		gu.waiting--
	}, nil
}

// changeCut puts another way of cutting the visit in place of the first, when the request
// has become a connection. It is false when the visit was cut already.
func (v *visit) changeCut(cut func(cause error)) bool {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	if _, there := v.guest.open[v]; !there {
		return false
	}
	v.cut = cut
	return true
}

// leave ends a visit. It is called once.
func (v *visit) leave() {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	if !v.replaced {
		v.guest.room.give()
	}
	delete(v.guest.open, v)
}

func (gu *guest) busy() bool {
	gu.mu.Lock()
	defer gu.mu.Unlock()
	return len(gu.open) > 0
}

func (gu *guest) openCount() int {
	gu.mu.Lock()
	defer gu.mu.Unlock()
	return len(gu.open)
}

func (gu *guest) reset() {
	gu.mu.Lock()
	open := gu.open
	gu.open = make(map[*visit]struct{})
	gu.factsAt = time.Time{}
	gu.mu.Unlock()
	for v := range open {
		v.cut(errCut)
	}
}

// room is for how many visits there is room in the process, to all sandboxes together: each
// costs file descriptors. It is safe for concurrent use.
type room struct {
	max  int64 // 0: there is no bound
	used atomic.Int64
}

func (r *room) take() bool {
	if used := r.used.Add(1); r.max > 0 && used > r.max {
		r.used.Add(-1)
		return false
	}
	return true
}

func (r *room) give() { r.used.Add(-1) }

// bucket lets requests through at a rate, with bursts of a second's worth unless it is given
// another. It is not safe for concurrent use.
type bucket struct {
	rate   float64 // per second; 0: no limit
	burst  float64
	tokens float64
	filled time.Time
}

func newBucket(rate float64) bucket {
	return bucket{rate: rate, burst: max(rate, 1), tokens: max(rate, 1)}
}

func (b *bucket) take(at time.Time) bool {
	if b.rate <= 0 {
		return true
	}
	if !b.filled.IsZero() {
		b.tokens = min(b.burst, b.tokens+at.Sub(b.filled).Seconds()*b.rate)
	}
	b.filled = at
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
