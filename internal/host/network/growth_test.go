package network

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sync/errgroup"
)

// holding is what this process and its table hold.
type holding struct {
	files, rules, goroutines int
	heap                     uint64 // in bytes
}

func survey(t testing.TB, f *firewall) holding {
	t.Helper()
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	h := holding{files: len(files), heap: memory.HeapAlloc, goroutines: runtime.NumGoroutine()}
	chains, err := new(nftables.Conn).ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range chains {
		if chain.Table.Name != f.table.Name {
			continue
		}
		rules, err := new(nftables.Conn).GetRules(f.table, chain)
		if err != nil {
			t.Fatal(err)
		}
		h.rules += len(rules)
	}
	return h
}

// TestNothingGrows takes many slots at once, does with each what is done with a sandbox's,
// and gives them back, over and over.
func TestNothingGrows(t *testing.T) {
	const rounds, slots, workers, slack = 5, 200, 16, 4 << 20
	n := open(t, newConfig(t))
	round := func() []Slot {
		taken := make([]Slot, slots)
		each := func(do func(i int) error) {
			t.Helper()
			var group errgroup.Group
			group.SetLimit(workers)
			for i := range taken {
				group.Go(func() error { return do(i) })
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		each(func(i int) (err error) {
			taken[i], err = n.Acquire(t.Context())
			return err
		})
		if got, want := elements(t, n.firewall), 3*slots; got != want {
			t.Errorf("set elements: %d, want %d", got, want)
		}
		t.Logf("%d acquired in %v", slots, time.Since(begin))
		each(func(i int) error {
			if i%20 != 0 {
				return nil
			}
			for _, do := range []error{
				n.SetRate(t.Context(), taken[i], 1_000_000, 0), n.Hold(t.Context(), taken[i]), n.Park(t.Context(), taken[i]),
			} {
				if do != nil {
					return do
				}
			}
			_, err := n.Unpark(t.Context(), taken[i])
			return err
		})
		begin = time.Now()
		each(func(i int) error {
			if i%2 == 0 {
				n.Retire(t.Context(), taken[i])
				return nil
			}
			return n.Release(t.Context(), taken[i])
		})
		n.retiring.Wait()
		t.Logf("%d released in %v", slots, time.Since(begin))
		return taken
	}
	round()
	before := survey(t, n.firewall)
	for range rounds - 1 {
		for _, slot := range round() {
			if got := traces(t, n, slot); len(got) > 0 {
				t.Fatalf("left of slot %d are %v", slot.Index, got)
			}
		}
		if got := elements(t, n.firewall); got != 0 {
			t.Fatalf("set elements left: %d", got)
		}
	}
	after := survey(t, n.firewall)
	if after.files > before.files || after.rules != before.rules || after.goroutines > before.goroutines {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if after.heap > before.heap+slack {
		t.Errorf("the heap grew from %d to %d bytes", before.heap, after.heap)
	}
}
