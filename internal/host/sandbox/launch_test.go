package sandbox

import (
	"context"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// hurried is a runtime that notes how long a start may take.
type hurried struct {
	Runtime
	most time.Duration
}

func (h *hurried) Start(ctx context.Context, spec runtime.Spec) error {
	if due, bounded := ctx.Deadline(); bounded {
		h.most = time.Until(due)
	}
	return h.Runtime.Start(ctx, spec)
}

// What a slow disk needs to read a large sandbox, its resume has.
func TestALargeSandboxHasLongerToComeBack(t *testing.T) {
	m := newMachine()
	cfg := m.config(t, t.TempDir())
	h := &hurried{Runtime: cfg.Runtime}
	cfg.Runtime = h
	s := m.openWith(t, cfg)
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	for bytes, want := range map[int64]time.Duration{
		1 << 20: launchTimeout,
		1 << 30: launchTimeout + 64*time.Second,
		1 << 40: launchTimeoutMost,
	} {
		if _, err := s.Pause(t.Context(), idA); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pause is cleared", func() bool { return s.idle(idA) })
		s.set(s.entries[idA], func(st *state) { st.sandbox.SnapshotBytes = bytes })
		if _, err := s.Resume(t.Context(), idA, 0); err != nil {
			t.Fatal(err)
		}
		if h.most > want || h.most < want-launchTimeout/2 {
			t.Errorf("%d bytes may take %v, not %v", bytes, h.most, want)
		}
	}
}
