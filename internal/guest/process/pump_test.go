package process

import (
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
