package sandbox

import (
	"context"
	"testing"
	"time"
)

func (s *Service) readyOf(id string) int {
	s.warm.mu.Lock()
	defer s.warm.mu.Unlock()
	return len(s.warm.ready[id])
}

// What was given up for want of room is made ready again when there is room.
func TestWarmSandboxesComeBack(t *testing.T) {
	m := newMachine()
	cfg := m.config(t, t.TempDir())
	cfg.Admit.MaxSandboxes = 2
	s := m.openWith(t, cfg)
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshots().Create(t.Context(), idA, snapA); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Snapshots().Delete(context.Background(), snapA) })
	const gone = "sng0000000000000000000" // is no reason to do without the other
	if err := s.Snapshots().SetWarm(t.Context(), []Warm{{gone, 1}, {snapA, 1}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is ready", func() bool { return s.readyOf(snapA) == 1 })
	if _, err := s.Create(t.Context(), request(idB)); err != nil {
		t.Fatal(err)
	}
	if n := s.readyOf(snapA); n != 0 {
		t.Fatalf("%d are ready beside two that run", n)
	}
	if err := s.Destroy(t.Context(), idB); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is ready again", func() bool { return s.readyOf(snapA) == 1 })
}

// Who cannot be made ready does not hold up the end.
func TestClosingDoesNotWaitForWarmSandboxes(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshots().Create(t.Context(), idA, snapA); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.hold = make(chan struct{}) // starts hang
	m.mu.Unlock()
	if err := s.Snapshots().SetWarm(t.Context(), []Warm{{snapA, 1}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is on its way", func() bool { return m.taken() == "slots [1 2], running ["+idA+"]" })
	began := time.Now()
	if err := s.Close(t.Context(), StopKill); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > launchTimeout/4 {
		t.Errorf("the end took %v", took)
	}
}
