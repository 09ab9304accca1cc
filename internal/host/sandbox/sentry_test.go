package sandbox

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// The sentry of a sandbox is killed at every point of what is done with the sandbox: the
// caller hears of it or it did not matter, the sandbox is in a state that lasts and can be
// brought back, and nothing is left.
func TestDeathOfASentryAtEveryPoint(t *testing.T) {
	w := newWorld(t)
	var point atomic.Value
	point.Store("")
	killed := 0
	h, err := w.open(t.Context(), Config{At: func(at string) {
		if at == point.Load() {
			point.Store("")
			for _, id := range []string{idA, idX} {
				if id == idA == strings.HasPrefix(at, "create") {
					continue
				}
				if pid, err := w.sentryPID(id); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL)
					killed = pid
				}
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { w.end(t, h) }()
	for _, c := range faultTable() {
		if !slices.Contains([]string{"create", "pause", "resume", "snapshot", "fork", "destroy"}, c.do) {
			continue
		}
		points := c.points
		if testing.Short() {
			points = points[len(points)-1:]
		}
		for _, at := range points {
			t.Run(c.do+" "+at, func(t *testing.T) {
				ctx := context.WithoutCancel(t.Context())
				h.bring(t, idA, c.before)
				killed = 0
				point.Store(at)
				did := faultActions[c.do](ctx, w, h)
				point.Store("")
				t.Logf("killed %d: %v", killed, did)
				eventually(t, "it is dead", func() bool {
					cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", killed))
					return killed == 0 || err != nil || len(cmdline) == 0
				})
				h.settled(t, idA)
				h.settled(t, idX)
				if c.do != "destroy" {
					h.bring(t, idA, Running)
					h.mustAnswer(t, idA, "true")
				}
				for _, id := range []string{idX, idY} {
					if err := h.Destroy(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
						t.Error(err)
					}
				}
				if err := h.Snapshots().Delete(ctx, snapX); err != nil && !fault.Is(err, fault.NotFound) {
					t.Error(err)
				}
				w.consistent(t, h)
			})
		}
	}
}

// settled waits until a sandbox is in a state that lasts, and what it says it is: one that
// runs has a sentry that runs.
func (h *host) settled(t testing.TB, id string) {
	t.Helper()
	eventually(t, id+" has settled", func() bool {
		h.mu.Lock()
		e := h.entries[id]
		h.mu.Unlock()
		if e == nil {
			return true
		}
		h.mu.Lock()
		_, busy := e.busy()
		status, run := e.sandbox.Status, e.run
		h.mu.Unlock()
		if busy || status != Running {
			return !busy && slices.Contains([]Status{Paused, Failed}, status)
		}
		_, ended := h.hasEnded(context.Background(), run.id)
		return !ended
	})
}
