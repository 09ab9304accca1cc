package sandbox

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/meminfo"
)

// Admission says how much may run on this machine at once. Zeroes bound nothing.
type Admission struct {
	// MemoryMB is the most that the memory of all that runs may add up to, in MiB. It is
	// more than the machine has: few guests use all of theirs.
	MemoryMB int
	// MaxSandboxes is how many may run.
	MaxSandboxes int
	// ReserveMB is what must be left of the memory that the machine really has, in MiB.
	ReserveMB int
	// MemAvailable returns that memory, in bytes; nil: what the kernel says.
	MemAvailable func() (uint64, error)
}

const (
	// freshMemoryMB is what a sandbox takes at once when it boots, in MiB.
	freshMemoryMB = 64
	// roomPoll is how often somebody who waits for memory looks whether there is some: it
	// comes back without anybody telling.
	roomPoll = 100 * time.Millisecond

	kib = 1 << 10
	mib = 1 << 20
)

// demand is what a run is about to take.
type demand struct {
	memoryMB int // that it may use
	nowMB    int // that it takes at once
}

// room is what the machine has for sandboxes. It is safe for concurrent use.
type room struct {
	cfg Admission

	mu       sync.Mutex
	memoryMB int
	// arrivingMB is what those take at once who have room and may not have taken it yet.
	arrivingMB int
	runs       int
	departing  int       // runs that are being ended
	queue      []*waiter // in the order of coming
}

// waiter is one who waits for room.
type waiter struct {
	d    demand
	wake chan struct{} // holds a token when it is worth to look again
	// passed is how many have had room before it that came later.
	passed int
}

// maxPassed is how many smaller ones may have room before one that waits for more: without
// them the room lies idle, and with any number of them it never gets its own.
const maxPassed = 16

func newRoom(cfg Admission) *room {
	if cfg.MemAvailable == nil {
		cfg.MemAvailable = meminfo.Available
	}
	return &room{cfg: cfg}
}

// take takes room, for which it waits at most that long. It does not pass those who came
// before, but for a few times those who need more than there is. The error says what there is
// too little of; what could never fit is refused at once.
func (r *room) take(ctx context.Context, d demand, wait time.Duration) (at *place, err error) {
	if most := r.cfg.MemoryMB; most > 0 && d.memoryMB > most {
		return nil, fault.New(fault.HostUnavailable,
			"this sandbox needs %d MiB of memory, and all on this host may use %d together (--memory-overcommit); make it smaller", d.memoryMB, most)
	}
	w := &waiter{d: d, wake: make(chan struct{}, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err = r.turn(w, r.queue); err == nil {
		return r.occupy(d), nil
	}
	if wait <= 0 {
		return nil, err
	}
	r.queue = append(r.queue, w)
	defer func() {
		r.queue = slices.DeleteFunc(r.queue, func(other *waiter) bool { return other == w })
		r.wakeAll()
	}()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	tick := time.NewTicker(roomPoll)
	defer tick.Stop()
	for {
		if err = r.turn(w, r.queue[:slices.Index(r.queue, w)]); err == nil {
			return r.occupy(d), nil
		}
		r.mu.Unlock()
		ended := false
		select {
		case <-w.wake:
		case <-tick.C:
		case <-timeout.C:
			ended = true
		case <-ctx.Done():
			err, ended = context.Cause(ctx), true
		}
		r.mu.Lock()
		if ended {
			return nil, err
		}
	}
}

// turn returns nil when it is the turn of one who has those ahead. The caller holds r.mu and
// gives the room.
func (r *room) turn(w *waiter, ahead []*waiter) error {
	waiting := func() error {
		return fault.New(fault.HostUnavailable, "the host is full, and %d are waiting for room on it; delete or pause sandboxes, or wait longer", len(ahead))
	}
	if slices.ContainsFunc(ahead, func(a *waiter) bool { return a.passed >= maxPassed }) {
		return waiting()
	}
	if err := r.fits(w.d); err != nil {
		if len(ahead) > 0 {
			return waiting()
		}
		return err
	}
	if slices.ContainsFunc(ahead, func(a *waiter) bool { return r.fits(a.d) == nil }) {
		return waiting() // it is about to have it
	}
	for _, a := range ahead {
		a.passed++
	}
	return nil
}

// place is the room that a run has. It is safe for concurrent use.
type place struct {
	room *room
	d    demand

	// Guarded by room.mu.
	arrived, left bool
}

// depart says that the run is about to give its room back; done, that this has been tried.
func (p *place) depart() (done func()) {
	r := p.room
	r.mu.Lock()
	defer r.mu.Unlock()
	r.departing++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.departing--
	})
}

// awaits says whether some run is about to give its room back.
func (r *room) awaits() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.departing > 0
}

// occupy counts a run in. The caller holds r.mu.
func (r *room) occupy(d demand) *place {
	r.memoryMB += d.memoryMB
	r.arrivingMB += d.nowMB
	r.runs++
	return &place{room: r, d: d}
}

// arrive says that the run has taken what it takes at once: the kernel counts it now. It may
// be called again.
func (p *place) arrive() {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	p.arriveLocked()
	p.room.wakeAll()
}

func (p *place) arriveLocked() {
	if !p.arrived {
		p.arrived = true
		p.room.arrivingMB -= p.d.nowMB
	}
}

// leave gives the room back. It may be called again.
func (p *place) leave() {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	if p.left {
		return
	}
	p.left = true
	p.arriveLocked()
	p.room.memoryMB -= p.d.memoryMB
	p.room.runs--
	p.room.wakeAll()
}

// force takes room for what runs already, whether there is any or not.
func (r *room) force(d demand) *place {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.occupy(d)
}

// wakeAll lets all in the queue look again. The caller holds r.mu.
func (r *room) wakeAll() {
	for _, w := range r.queue {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// fits says why there is no room; the caller holds r.mu.
func (r *room) fits(d demand) error {
	switch most := r.cfg; {
	case most.MaxSandboxes > 0 && r.runs >= most.MaxSandboxes:
		return fault.New(fault.HostUnavailable, "the host is full: %d sandboxes run on it, and it allows no more (--max-sandboxes); delete or pause one", r.runs)
	case most.MemoryMB > 0 && r.memoryMB+d.memoryMB > most.MemoryMB:
		return fault.New(fault.HostUnavailable,
			"the host is full: its sandboxes may use %d MiB of memory together, the most is %d and this one needs %d (--memory-overcommit); delete or pause some",
			r.memoryMB, most.MemoryMB, d.memoryMB)
	}
	if r.cfg.ReserveMB == 0 {
		return nil
	}
	available, err := r.cfg.MemAvailable()
	if err != nil {
		return fmt.Errorf("read the machine's free memory: %w", err)
	}
	if free := int(available/mib) - r.arrivingMB; free-d.nowMB < r.cfg.ReserveMB {
		return fault.New(fault.HostUnavailable,
			"the host has %d MiB of memory left, this needs %d at once and %d stay free; delete or pause sandboxes", free, d.nowMB, r.cfg.ReserveMB)
	}
	return nil
}

// minFreeDisk is what the host's disk must have left for another sandbox, in bytes: its
// guests and its own database write to it, and a full one hurts all of them.
const minFreeDisk = 256 << 20

// checkDisk refuses creates while the disk is nearly full.
func (s *Service) checkDisk() error {
	var disk unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &disk); err != nil {
		return fmt.Errorf("read the room on the disk: %w", err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < minFreeDisk {
		return fault.New(fault.NoSpace, "the host's disk has %d MiB left, and another sandbox needs %d; delete sandboxes or make room on it", free>>20, minFreeDisk>>20)
	}
	return nil
}
