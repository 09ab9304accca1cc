package lifecycle

import (
	"context"
	"math"
	"runtime"
	"sync"
	"testing"
	"time"
)

// burst is more than a Settler of the tests leaves alone, in bytes.
const burst = 64 << 20

// takeMemory makes pooled memory that nobody uses.
func takeMemory(pool *sync.Pool) {
	memory := make([]byte, burst)
	for i := range memory {
		memory[i] = 1
	}
	pool.Put(&memory)
}

func TestSettlerGivesMemoryBack(t *testing.T) {
	var pool sync.Pool
	takeMemory(&pool)
	before := held()
	if before < burst {
		t.Fatalf("the runtime holds %d bytes, less than were taken", before)
	}
	s := &Settler{wait: 10 * time.Millisecond, again: 10 * time.Millisecond, above: burst / 2}
	defer s.Close()
	s.Touch()
	awaitHeld(t, before-burst/2)
	runtime.KeepAlive(&pool)
}

// What is let go after the first quiet moment is given back, too.
func TestSettlerGivesBackWhatIsLetGoLater(t *testing.T) {
	var pool sync.Pool
	takeMemory(&pool)
	before := held()
	s := &Settler{wait: time.Millisecond, again: time.Hour, above: math.MaxUint64}
	defer s.Close()
	s.Touch()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for settled := false; !settled; {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("the quiet moment does not come")
		}
		s.mu.Lock()
		settled = s.settled
		s.mu.Unlock()
	}
	if !s.timer.Stop() {
		t.Fatal("there is no second time")
	}
	s.above = burst / 2
	s.settle()
	awaitHeld(t, before-burst/2)
	if s.timer.Stop() {
		t.Error("there is a third time")
	}
	runtime.KeepAlive(&pool)
}

// Before a freeze much memory is given back; for a little nobody waits.
func TestRestGivesMuchMemoryBack(t *testing.T) {
	l := New(Config{Ports: &journal{}, KeepAlives: func(bool) {}})
	defer l.Close()
	for name, rest := range map[string]func(context.Context) error{"Prepare": l.Prepare, "Tidy": l.Tidy} {
		var pool sync.Pool
		takeMemory(&pool)
		before := held()
		if err := rest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := held(); now > before-burst/2 {
			t.Errorf("%s: %d bytes are held, after %d", name, now, before)
		}
		runtime.KeepAlive(&pool)
		if held() > settleAbove {
			continue // the race detector's own
		}
		var was, is runtime.MemStats
		runtime.ReadMemStats(&was)
		if err := rest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if runtime.ReadMemStats(&is); is.NumForcedGC != was.NumForcedGC {
			t.Errorf("%s: it collected for %d bytes", name, held())
		}
	}
}

// awaitHeld waits until the runtime holds no more than that, in bytes.
func awaitHeld(t *testing.T, most uint64) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for held() > most {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%d bytes are held, not %d", held(), most)
		}
	}
}

func TestSettlerWaitsForQuiet(t *testing.T) {
	s := &Settler{wait: time.Hour, above: 0}
	s.Touch()
	s.Touch()
	if s.timer == nil || !s.timer.Stop() {
		t.Fatal("nothing is waited for after a Touch")
	}
	s.Touch()
	s.Close()
	if s.timer.Stop() {
		t.Error("something is waited for after Close")
	}
	s.Touch()
	if s.timer.Stop() {
		t.Error("something is waited for after a Touch that came too late")
	}
}
