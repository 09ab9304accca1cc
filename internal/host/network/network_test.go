package network

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

func TestAcquireAndReleaseLeaveNothing(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	if got := traces(t, n, slot); len(got) != 3 {
		t.Fatalf("after Acquire there are only %v", got)
	}
	if got := elements(t, n.firewall); got != 3 {
		t.Errorf("set elements after Acquire: %d, want 3", got)
	}
	for range 2 {
		if err := n.Release(t.Context(), slot); err != nil {
			t.Fatalf("Release: %v", err)
		}
		if got := traces(t, n, slot); len(got) > 0 {
			t.Errorf("after Release there are %v", got)
		}
		if got := elements(t, n.firewall); got != 0 {
			t.Errorf("set elements after Release: %d", got)
		}
	}
}

func BenchmarkAcquire(b *testing.B) { benchmark(b, 1) }

// BenchmarkAcquireBusy has the releases of others going on all the while.
func BenchmarkAcquireBusy(b *testing.B) { benchmark(b, 8) }

// BenchmarkTogether acquires eight slots at once and then releases them at once.
func BenchmarkTogether(b *testing.B) {
	const together = 8
	n := open(b, newConfig(b))
	var acquire, release []time.Duration
	for b.Loop() {
		slots := make([]Slot, together)
		var group errgroup.Group
		begin := time.Now()
		for i := range slots {
			group.Go(func() (err error) {
				slots[i], err = n.Acquire(b.Context())
				return err
			})
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
		acquired := time.Now()
		for _, slot := range slots {
			group.Go(func() error { return n.Release(b.Context(), slot) })
		}
		if err := group.Wait(); err != nil {
			b.Fatal(err)
		}
		acquire = append(acquire, acquired.Sub(begin))
		release = append(release, time.Since(acquired))
	}
	slices.Sort(acquire)
	slices.Sort(release)
	b.ReportMetric(milliseconds(acquire[len(acquire)/2]), "ms-acquire-8-p50")
	b.ReportMetric(milliseconds(release[len(release)/2]), "ms-release-8-p50")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// benchmark acquires and releases slots, so many at a time.
func benchmark(b *testing.B, workers int) {
	n := open(b, newConfig(b))
	var mu sync.Mutex
	var acquire, release []time.Duration
	b.SetParallelism(max(1, workers/runtime.GOMAXPROCS(0)))
	if workers == 1 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			begin := time.Now()
			slot, err := n.Acquire(b.Context())
			if err != nil {
				b.Error(err)
				return
			}
			acquired := time.Now()
			if err := n.Release(b.Context(), slot); err != nil {
				b.Error(err)
				return
			}
			mu.Lock()
			acquire = append(acquire, acquired.Sub(begin))
			release = append(release, time.Since(acquired))
			mu.Unlock()
		}
	})
	slices.Sort(acquire)
	slices.Sort(release)
	b.ReportMetric(milliseconds(acquire[len(acquire)/2]), "ms-acquire-p50")
	b.ReportMetric(milliseconds(acquire[len(acquire)*95/100]), "ms-acquire-p95")
	b.ReportMetric(milliseconds(release[len(release)/2]), "ms-release-p50")
}
