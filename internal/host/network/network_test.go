package network

import (
	"slices"
	"testing"
	"time"
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

func BenchmarkAcquire(b *testing.B) {
	n := open(b, newConfig(b))
	var acquire, release []time.Duration
	for b.Loop() {
		begin := time.Now()
		slot := mustAcquire(b, n)
		acquired := time.Now()
		if err := n.Release(b.Context(), slot); err != nil {
			b.Fatal(err)
		}
		acquire = append(acquire, acquired.Sub(begin))
		release = append(release, time.Since(acquired))
	}
	slices.Sort(acquire)
	slices.Sort(release)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	b.ReportMetric(ms(acquire[len(acquire)/2]), "ms-acquire-p50")
	b.ReportMetric(ms(acquire[len(acquire)*95/100]), "ms-acquire-p95")
	b.ReportMetric(ms(release[len(release)/2]), "ms-release-p50")
}
