package sandbox

import (
	"errors"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// untaken opens a Service beside a sandbox, A, that runs and cannot be taken over: a step of
// that fails.
func untaken(t *testing.T, m *machine, dir, step string, was Status) *Service {
	t.Helper()
	first := m.open(t, dir)
	if _, err := first.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Resume(t.Context(), idA, 0); err != nil {
		t.Fatal(err)
	}
	if was == Pausing {
		commit(t, first, "pa-new")
		first.set(first.entries[idA], func(st *state) { st.sandbox.Status, st.draft = Pausing, "pa-new" })
	}
	first.crash()
	m.setFailure(step, errors.New("something is in the way"))
	s := m.open(t, dir)
	mustBeUntaken(t, m, s)
	return s
}

func mustBeUntaken(t *testing.T, m *machine, s *Service) {
	t.Helper()
	sb, err := s.Get(idA)
	if err != nil || sb.Status != Failed || !strings.HasPrefix(sb.Reason, "it runs, but could not be taken over: ") {
		t.Fatalf("it is %+v, %v", sb, err)
	}
	if taken := m.taken(); taken != "slots [1], running ["+idA+"]" {
		t.Fatalf("what runs was ended: %s", taken)
	}
	if _, err := s.Resume(t.Context(), idA, 0); !fault.Is(err, fault.InvalidState) || !strings.Contains(fault.MessageOf(err), "it runs") {
		t.Fatalf("a resume from its former pause: %v", err)
	}
}

func (s *Service) becomes(t *testing.T, status Status) Sandbox {
	t.Helper()
	var sb Sandbox
	eventually(t, "it is "+string(status), func() bool { sb, _ = s.Get(idA); return sb.Status == status && s.idle(idA) })
	return sb
}

// A start never ends what runs: it is tried again until it can be taken over, also by the
// start after that.
func TestWhatCannotBeTakenOverRunsOn(t *testing.T) {
	for _, step := range []string{"adopt", "thaw"} {
		for _, was := range []Status{Running, Pausing} {
			t.Run(step+" "+string(was), func(t *testing.T) {
				m, dir := newMachine(), t.TempDir()
				s := untaken(t, m, dir, step, was)
				s.crash()
				s = m.open(t, dir)
				mustBeUntaken(t, m, s)
				m.setFailure(step, nil)
				if sb := s.becomes(t, Running); sb.Reason != "" {
					t.Errorf("it is %+v", sb)
				}
				if _, err := s.Guest(idA); err != nil {
					t.Error(err)
				}
				if list := s.cfg.Snapshots.List(); len(list) != 1 || list[0].ID == "pa-new" {
					t.Errorf("snapshots %v", list)
				}
				if _, err := s.Pause(t.Context(), idA); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// What ends before it could be taken over is as what ended while no agent ran.
func TestWhatEndsUntaken(t *testing.T) {
	for was, want := range map[Status]Status{Running: Failed, Pausing: Paused} {
		t.Run(string(was), func(t *testing.T) {
			m := newMachine()
			s := untaken(t, m, t.TempDir(), "adopt", was)
			m.end(idA, runtime.Exit{})
			eventually(t, "it is given back", func() bool { return m.taken() == nothingTaken })
			if sb := s.becomes(t, want); strings.Contains(sb.Reason, "it runs") {
				t.Errorf("it is %+v", sb)
			}
			if list := s.cfg.Snapshots.List(); len(list) != 1 || (list[0].ID == "pa-new") != (was == Pausing) {
				t.Errorf("snapshots %v", list)
			}
			if _, err := s.Resume(t.Context(), idA, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatIsUntakenCanBeEnded(t *testing.T) {
	for name, end := range map[string]func(*Service) error{
		"delete": func(s *Service) error { return s.Destroy(t.Context(), idA) },
		"stop":   func(s *Service) error { return s.Close(t.Context(), StopKill) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			s := untaken(t, m, t.TempDir(), "adopt", Running)
			if err := end(s); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(idA); !fault.Is(err, fault.NotFound) || m.taken() != nothingTaken || len(s.cfg.Snapshots.List()) > 0 {
				t.Errorf("left: %v, %s, %v", err, m.taken(), s.cfg.Snapshots.List())
			}
		})
	}
}

// Who deletes it does not want it back, even when the delete fails.
func TestWhatCouldNotBeDeletedIsNotTakenOver(t *testing.T) {
	m := newMachine()
	s := untaken(t, m, t.TempDir(), "adopt", Running)
	m.setFailure("destroy", errors.New("no"))
	if err := s.Destroy(t.Context(), idA); err == nil {
		t.Fatal("it was deleted")
	}
	m.setFailure("adopt", nil)
	e := s.entries[idA]
	if _, done := s.claimRun(e, e.run, actAdopt); done != nil {
		done()
		t.Error("it would be taken over")
	}
	m.setFailure("destroy", nil)
	if err := s.Destroy(t.Context(), idA); err != nil {
		t.Error(err)
	}
}

// A run without a network cannot be reached any more and is not ended for it: it is written
// down and goes on with another, also when that only works later.
func TestWhatHasLostItsNetworkIsPaused(t *testing.T) {
	for _, failing := range []string{"", "checkpoint"} {
		t.Run(failing, func(t *testing.T) {
			m, dir := newMachine(), t.TempDir()
			first := m.open(t, dir)
			if _, err := first.Create(t.Context(), request(idA)); err != nil {
				t.Fatal(err)
			}
			first.crash()
			m.mu.Lock()
			clear(m.slots)
			m.frozen[idA] = true // a pause was cut off, too
			m.mu.Unlock()
			if failing != "" {
				m.setFailure(failing, errors.New("not now"))
			}
			s := m.open(t, dir)
			if failing != "" {
				eventually(t, "it was tried", func() bool {
					sb, err := s.Get(idA)
					return err == nil && sb.Status == Failed && strings.Contains(sb.Reason, "it runs") && s.idle(idA)
				})
				if len(m.running) != 1 || len(s.cfg.Snapshots.List()) > 0 {
					t.Errorf("running %v, snapshots %v", m.running, s.cfg.Snapshots.List())
				}
				m.setFailure(failing, nil)
			}
			if sb := s.becomes(t, Paused); sb.Reason != reasonNoNetwork || m.taken() != nothingTaken {
				t.Errorf("it is %+v; %s", sb, m.taken())
			}
			s.crash()
			s = m.open(t, dir)
			if sb := s.becomes(t, Paused); sb.Reason != reasonNoNetwork {
				t.Errorf("after another start it is %+v", sb)
			}
			if _, err := s.Resume(t.Context(), idA, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Guest(idA); err != nil {
				t.Error(err)
			}
		})
	}
}
