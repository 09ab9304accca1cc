package metering

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

func sealed(data []byte) []byte {
	const sumSize = 4
	if len(data) < sumSize {
		return data
	}
	body := slices.Clone(data[:len(data)-sumSize])
	return binary.BigEndian.AppendUint32(body, crc32.Checksum(body, castagnoli))
}

// busy is what is measured: sandboxes that use half a core since they began.
type busy struct {
	mu    sync.Mutex
	began map[string]time.Time
	asked map[string]int
	fail  map[string]error
	slow  map[string]time.Duration
}

func newBusy(ids ...string) *busy {
	b := &busy{began: map[string]time.Time{}, asked: map[string]int{}, fail: map[string]error{}, slow: map[string]time.Duration{}}
	for _, id := range ids {
		b.began[id] = time.Now()
	}
	return b
}

func (b *busy) usage(ctx context.Context, id string) (Use, error) {
	b.mu.Lock()
	b.asked[id]++
	began, runs, fail, slow := b.began[id], !b.began[id].IsZero(), b.fail[id], b.slow[id]
	b.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return Use{}, ctx.Err()
		}
	}
	switch {
	case fail != nil:
		return Use{}, fail
	case !runs:
		return Use{}, fault.New(fault.NotFound, "%s does not run", id)
	}
	lived := time.Since(began)
	return Use{
		Usage:     runtime.Usage{CPU: lived / 2, MemoryBytes: 20 << 20, DiskBytes: 5 << 20, Processes: 7},
		SentBytes: uint64(lived/time.Millisecond) * 1000, ReceivedBytes: uint64(lived/time.Millisecond) * 2000, Limits: someLimits,
	}, nil
}

func (b *busy) restart(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.began[id] = time.Now()
}

func newMeter(t *testing.T, dir string, usage Usage) *Meter {
	t.Helper()
	m, err := New(dir, usage, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// started runs m until the returned function is called.
func started(m *Meter) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { m.Run(ctx) })
	return func() { cancel(); done.Wait() }
}

// pass lets time pass, which in a bubble takes none.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func points(t *testing.T, m *Meter, id string, back time.Duration) []Point {
	t.Helper()
	all, err := m.Range(id, back)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestARunningSandboxIsSampled(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(t, dir, newBusy("sba", "sbb").usage)
		stop := started(m)
		m.Track("sba")
		pass(time.Minute)
		got := points(t, m, "sba", 10*time.Minute)
		if len(got) != 119 { // the first look only begins the count
			t.Errorf("%d points after a minute", len(got))
		}
		for _, p := range got {
			if p.CPUPct != 50 || p.MemoryBytes != 20<<20 || p.DiskBytes != 5<<20 || p.Processes != 7 || p.SentRate != 8e6 || p.ReceivedRate != 16e6 || p.Limits != someLimits {
				t.Fatalf("%+v", p)
			}
		}
		for _, id := range []string{"sbb", "sbc"} {
			if got := points(t, m, id, time.Hour); len(got) != 0 {
				t.Errorf("%s has %d points", id, len(got))
			}
		}
		stop()
	})
}

func TestAHistoryLivesOnAcrossPausesAndRestarts(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBusy("sba")
		m := newMeter(t, dir, b.usage)
		stop := started(m)
		m.Track("sba")
		pass(10 * time.Second)
		if err := m.Untrack("sba"); err != nil {
			t.Fatal(err)
		}
		before := points(t, m, "sba", time.Minute)
		pass(10 * time.Second) // paused
		if got := points(t, m, "sba", time.Minute); len(got) != len(before) {
			t.Errorf("%d points of a paused sandbox, %d before", len(got), len(before))
		}
		b.restart("sba")
		m.Track("sba")
		pass(10 * time.Second)
		stop()

		m = newMeter(t, dir, b.usage) // the next agent adopts it
		stop = started(m)
		m.Track("sba")
		pass(10 * time.Second)
		got := points(t, m, "sba", time.Minute)
		if want := 3 * len(before); len(got) < want-2 || len(got) > want+2 {
			t.Errorf("%d points, want about %d", len(got), want)
		}
		for i, p := range got {
			if p.CPUPct != 50 || p.SentRate != 8e6 {
				t.Errorf("point %d says %v and %v: the counter of another run was taken", i, p.CPUPct, p.SentRate)
			}
			if i > 0 && p.SentBytes != got[i-1].SentBytes+500_000 {
				t.Errorf("point %d: %d bytes after %d", i, p.SentBytes, got[i-1].SentBytes)
			}
		}
		stop()
	})
}

func TestAHistoryIsWrittenWhileItsSandboxRuns(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const crowd = 200
		b := newBusy()
		m := newMeter(t, dir, b.usage)
		stop := started(m)
		for i := range crowd {
			id := fmt.Sprint("sb", i)
			b.restart(id)
			m.Track(id)
		}
		pass(2*writeEvery + time.Second)
		after, err := New(dir, b.usage, slog.New(slog.DiscardHandler)) // this one sees the disk alone
		if err != nil {
			t.Fatal(err)
		}
		for i := range crowd {
			if got := points(t, after, fmt.Sprint("sb", i), 10*time.Minute); len(got) < int(writeEvery/sampleEvery)-2 {
				t.Fatalf("sandbox %d has %d points on the disk", i, len(got))
			}
		}
		stop()
	})
}

func TestForgottenAndUnwantedHistoriesGo(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(t, dir, newBusy("sba", "sbb", "sbc", "sbd").usage)
		stop := started(m)
		for _, id := range []string{"sba", "sbb", "sbc", "sbd"} {
			m.Track(id)
		}
		pass(2 * time.Second)
		for _, id := range []string{"sbb", "sbc"} {
			if err := m.Untrack(id); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range []string{"sba", "sbx"} {
			if err := m.Forget(id); err != nil {
				t.Error(err)
			}
		}
		if err := m.Retain(func(id string) bool { return id == "sbb" }); err != nil {
			t.Error(err)
		}
		for id, want := range map[string]bool{"sba": false, "sbb": true, "sbc": false, "sbd": true} {
			if got := len(points(t, m, id, time.Minute)) > 0; got != want {
				t.Errorf("%s has a history: %v", id, got)
			}
		}
		pass(2 * writeEvery)
		stop()
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 2 {
			t.Errorf("left %v", left)
		}
	})
}

func TestOneThatFailsOrHangsHarmsNoOther(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBusy("good", "fails", "hangs")
		b.fail["fails"] = errors.New("no")
		b.slow["hangs"] = time.Hour
		m := newMeter(t, dir, b.usage)
		stop := started(m)
		for _, id := range []string{"good", "fails", "hangs", "gone"} {
			m.Track(id)
		}
		pass(time.Minute)
		if got := points(t, m, "good", time.Minute); len(got) < 115 {
			t.Errorf("%d points", len(got))
		}
		for _, id := range []string{"fails", "hangs", "gone"} {
			if got := points(t, m, id, time.Minute); len(got) != 0 {
				t.Errorf("%s has %d points", id, len(got))
			}
		}
		b.mu.Lock()
		if n := b.asked["hangs"]; n > 7 {
			t.Errorf("the one that hangs was asked %d times in a minute", n)
		}
		delete(b.fail, "fails")
		b.mu.Unlock()
		pass(10 * time.Second)
		got := points(t, m, "fails", time.Minute)
		if len(got) < 17 || got[0].CPUPct != 50 {
			t.Errorf("%d points after it works again", len(got))
		}
		stop()
	})
}

func TestADamagedHistoryBeginsAnew(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, ".partial-123")
	if ok, err := filepath.Match(atomicfile.Pattern, filepath.Base(half)); !ok || err != nil {
		t.Fatal("the name is not that of a half-written file")
	}
	for path, data := range map[string]string{half: "x", filepath.Join(dir, "sba.metrics"): magic + "damage"} {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(t, dir, newBusy("sba").usage)
		if _, err := os.Stat(half); err == nil {
			t.Error("a half-written file is still there")
		}
		if _, err := m.Range("sba", time.Minute); err == nil {
			t.Error("damage was read")
		}
		stop := started(m)
		m.Track("sba")
		pass(2 * time.Second)
		stop()
		if got := points(t, m, "sba", time.Minute); len(got) < 2 {
			t.Errorf("%d points", len(got))
		}
	})
}

func TestEverythingAtOnce(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBusy()
		m := newMeter(t, dir, b.usage)
		stop := started(m)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				id := fmt.Sprint("sb", i)
				b.restart(id)
				for range 10 {
					m.Track(id)
					<-time.After(3 * time.Second)
					_, err := m.Range(id, time.Minute)
					if err = errors.Join(err, m.Untrack(id)); err != nil {
						t.Error(err)
					}
				}
				if err := m.Forget(id); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		stop()
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
			t.Errorf("left %v", left)
		}
	})
}

// What the meter itself takes for 200 sandboxes, without what it costs to ask for their use:
// it has to stay well below one percent of a core.
func TestTheMeterIsCheap(t *testing.T) {
	const crowd = 200
	m := newMeter(t, t.TempDir(), func(context.Context, string) (Use, error) {
		return Use{Usage: runtime.Usage{CPU: time.Second, MemoryBytes: 20 << 20}}, nil
	})
	for i := range crowd {
		m.Track(fmt.Sprint("sb", i))
	}
	all := m.list(nil)
	for _, one := range all {
		one.series = filled(5000)
	}
	began := cpuTime(t)
	const seconds = 60
	for tick := range seconds * int(time.Second/sampleEvery) {
		for _, one := range all {
			m.look(t.Context(), one)
		}
		for _, one := range all[tick*crowd/120 : (tick+1)*crowd/120] { // each once a minute: half of what Run does
			for range 2 {
				if err := m.write(one); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	share := (cpuTime(t) - began).Seconds() / seconds
	t.Logf("%.3f %% of a core", 100*share)
	if share > 0.01 {
		t.Errorf("it takes %.2f %% of a core", 100*share)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
