package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	var available atomic.Uint64
	available.Store(4096 * mib)
	r := newRoom(Admission{MemoryMB: 1000, MaxSandboxes: 3, ReserveMB: 512, MemAvailable: func() (uint64, error) { return available.Load(), nil }})
	take := func(d demand) (*place, error) { return r.take(t.Context(), d, 0) }
	refused := func(err error, says string) {
		t.Helper()
		if !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), says) {
			t.Errorf("%v; want something of %q", err, says)
		}
	}
	first, err := take(demand{600, 64})
	if err != nil {
		t.Fatal(err)
	}
	_, err = take(demand{500, 64})
	refused(err, "the most is 1000 and this one needs 500")
	first.leave()
	first.leave() // once only
	for range 3 {
		if _, err := take(demand{100, 64}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = take(demand{100, 64})
	refused(err, "3 sandboxes run on it")
	if r.memoryMB != 300 || r.runs != 3 {
		t.Errorf("%d MiB, %d runs", r.memoryMB, r.runs)
	}
	r = newRoom(r.cfg)
	available.Store(600 * mib)
	_, err = take(demand{100, 200})
	refused(err, "600 MiB of memory left")
	// What others are about to take is not there any more, though the kernel does not know yet.
	arriving, err := take(demand{100, 88})
	if err != nil {
		t.Fatal(err)
	}
	_, err = take(demand{100, 1})
	refused(err, "512 MiB of memory left")
	arriving.arrive()
	if _, err := take(demand{100, 1}); err != nil {
		t.Error(err)
	}
	arriving.leave()
	if r.memoryMB != 100 || r.arrivingMB != 1 || r.runs != 1 {
		t.Errorf("%d MiB, %d arriving, %d runs", r.memoryMB, r.arrivingMB, r.runs)
	}
	r.cfg.MemAvailable = func() (uint64, error) { return 0, errors.New("broken") }
	if _, err = take(demand{1, 1}); err == nil {
		t.Error("nobody knows what is free, and it was given away")
	}
}

// Who waits is served in the order of coming, and whoever has waited long enough hears why.
func TestWaitingForRoomIsFair(t *testing.T) {
	r := newRoom(Admission{MemoryMB: 100})
	first, err := r.take(t.Context(), demand{memoryMB: 100}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	for i, size := range []int{90, 20, 60} {
		wg.Go(func() {
			at, err := r.take(t.Context(), demand{memoryMB: size}, time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			at.leave()
		})
		eventually(t, "it waits", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.queue) == i+1 })
	}
	if _, err := r.take(t.Context(), demand{memoryMB: 1}, 0); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("one that does not wait: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.take(ctx, demand{memoryMB: 1}, time.Minute); !fault.Is(err, fault.Canceled) {
		t.Errorf("one that goes away: %v", err)
	}
	if _, err := r.take(t.Context(), demand{memoryMB: 1}, time.Millisecond); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("one that waits too short: %v", err)
	}
	first.leave()
	wg.Wait()
	if !slices.Equal(order, []int{0, 1, 2}) || r.memoryMB != 0 || r.runs != 0 {
		t.Errorf("served %v, %d MiB taken", order, r.memoryMB)
	}
}

// A host that is full refuses, waits, and has room again when a sandbox is paused or dies.
func TestAFullHost(t *testing.T) {
	m := newMachine()
	cfg := m.config(t, t.TempDir())
	cfg.Admit = Admission{MaxSandboxes: 2}
	s := m.openWith(t, cfg)
	for _, id := range []string{idA, idB} {
		if _, err := s.Create(t.Context(), request(id)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Create(t.Context(), request(idC)); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("a third: %v", err)
	}
	if _, err := s.Get(idC); !fault.Is(err, fault.NotFound) {
		t.Errorf("of the refused one there is %v", err)
	}
	done := make(chan error, 1)
	go func() {
		req := request(idC)
		req.Wait = time.Minute
		_, err := s.Create(t.Context(), req)
		done <- err
	}()
	eventually(t, "it waits", func() bool { s.room.mu.Lock(); defer s.room.mu.Unlock(); return len(s.room.queue) == 1 })
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resume(t.Context(), idA, 0); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("resume on a full host: %v", err)
	}
	if sb, err := s.Get(idA); err != nil || sb.Status != Paused {
		t.Errorf("it is %+v, %v", sb, err)
	}
	if err := s.Destroy(t.Context(), idB); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resume(t.Context(), idA, 0); err != nil {
		t.Error(err)
	}
}

// A pause answers before what it held is given back. Who makes room by one has it at once.
func TestAPauseMakesRoom(t *testing.T) {
	m := newMachine()
	cfg := m.config(t, t.TempDir())
	var tries, available atomic.Uint64
	available.Store(1000 * mib)
	cfg.Admit = Admission{ReserveMB: 500, MemAvailable: func() (uint64, error) { tries.Add(1); return available.Load(), nil }}
	held := make(chan struct{})
	cfg.At = func(point string) {
		if point == "pause.runtime" {
			<-held
		}
	}
	s := m.openWith(t, cfg)
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	available.Store(400 * mib)
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	before := tries.Load()
	done := make(chan error, 1)
	go func() {
		_, err := s.Create(t.Context(), request(idB))
		done <- err
	}()
	eventually(t, "it tries again, or is refused", func() bool { return tries.Load() > before+1 || len(done) > 0 })
	available.Store(1000 * mib)
	close(held)
	if err := <-done; err != nil {
		t.Error(err)
	}
	// Where nobody is on the way out a refusal comes at once.
	eventually(t, "the pause is cleared", func() bool { return s.idle(idA) })
	available.Store(400 * mib)
	before = tries.Load()
	if _, err := s.Create(t.Context(), request(idC)); !fault.Is(err, fault.HostUnavailable) || tries.Load() != before+1 {
		t.Errorf("%v, after %d attempts", err, tries.Load()-before)
	}
}

// What can never fit does not wait, and keeps nobody from room.
func TestWhatIsLargerThanTheHostIsRefusedAtOnce(t *testing.T) {
	r := newRoom(Admission{MemoryMB: 100})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := r.take(ctx, demand{memoryMB: 101}, time.Hour); !fault.Is(err, fault.HostUnavailable) || ctx.Err() != nil {
		t.Errorf("it waited: %v", err)
	}
}

// One that waits for much does not keep others from what it could not use, but they do not
// pass it for ever.
func TestSmallOnesPassALargeOneForAWhile(t *testing.T) {
	r := newRoom(Admission{MemoryMB: 100})
	long, err := r.take(t.Context(), demand{memoryMB: 50}, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		at, err := r.take(t.Context(), demand{memoryMB: 90}, time.Minute)
		if err == nil {
			at.leave()
		}
		done <- err
	}()
	eventually(t, "it waits", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.queue) == 1 })
	for i := range maxPassed {
		// In turn with and without waiting: the second waits behind the large one.
		at, err := r.take(t.Context(), demand{memoryMB: 10}, time.Duration(i%2)*time.Minute)
		if err != nil {
			t.Fatal(i, err)
		}
		at.leave()
	}
	if _, err := r.take(t.Context(), demand{memoryMB: 10}, 0); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("one too many: %v", err)
	}
	long.leave()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if at, err := r.take(t.Context(), demand{memoryMB: 10}, 0); err != nil {
		t.Error(err)
	} else {
		at.leave()
	}
	if r.memoryMB != 0 || r.runs != 0 {
		t.Errorf("%d MiB, %d runs", r.memoryMB, r.runs)
	}
}
