package process

import (
	"log/slog"
	"sync"
	"testing"
	"time"
)

// Only a flow of large pieces is left to gather; nobody is kept waiting for an answer.
func TestOutputThatFlowsGathers(t *testing.T) {
	const us = time.Microsecond
	type piece struct {
		after time.Duration // the one before
		size  int
		want  time.Duration
	}
	for name, pieces := range map[string][]piece{
		"the first is not kept":       {{time.Hour, 8 << 10, 0}},
		"a slow one is not kept":      {{time.Hour, 8 << 10, 0}, {gatherWithin, 8 << 10, 0}},
		"an answer is not kept":       {{time.Hour, 100, 0}, {100 * us, 100, 0}, {100 * us, bulk - 1, 0}},
		"many small writes gather":    {{time.Hour, 8 << 10, 0}, {100 * us, 8 << 10, maxGather}, {600 * us, 32 << 10, maxGather}},
		"until the pipe is half full": {{time.Hour, 64 << 10, 0}, {100 * us, 64 << 10, 200 * us}},
		"what is fast enough is not":  {{time.Hour, 128 << 10, 0}, {100 * us, 128 << 10, 0}},
	} {
		var f flow
		now := time.Now()
		for i, p := range pieces {
			now = now.Add(p.after)
			if got := f.gather(p.size, now); got != p.want {
				t.Errorf("%s: piece %d gathers for %v, want %v", name, i, got, p.want)
			}
		}
	}
}

// In a crowd all get alike: those that find enough others gathering do not wait.
func TestFewGatherAtOnce(t *testing.T) {
	m := NewManager(Config{Logger: slog.New(slog.DiscardHandler)})
	defer m.Close()
	p := &Process{manager: m, gone: make(chan struct{})}
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer close(p.gone)
	for range maxGathering {
		if !m.gathering.TryAcquire(1) {
			t.Fatalf("fewer than %d gather at once", maxGathering)
		}
	}
	p.letGather(time.Hour) // returns
	m.gathering.Release(1)
	waiting.Go(func() { p.letGather(time.Hour) })
	eventually(t, "a flow that may gather does", func() bool {
		if !m.gathering.TryAcquire(1) {
			return true
		}
		m.gathering.Release(1)
		return false
	})
}
