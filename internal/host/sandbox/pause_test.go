package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// Everything that is decided by the table: each action in each state.
func TestEveryActionInEveryState(t *testing.T) {
	can := map[action]string{
		actUse: "running", actPause: "running", actSnapshot: "running", actEnd: "running",
		actResume: "paused", actDestroy: "running paused stopped error", actAdopt: "error",
	}
	for act, legal := range can {
		for _, status := range statuses {
			err := require(Sandbox{ID: "sb1", Status: status}, act)
			if want := strings.Contains(legal, string(status)); want != (err == nil) {
				t.Errorf("%s of one that is %s: %v", act, status, err)
			}
			if err != nil && (!fault.Is(err, fault.InvalidState) || !strings.Contains(fault.MessageOf(err), string(status))) {
				t.Errorf("%s of one that is %s: %v", act, status, err)
			}
		}
	}
	failed := Sandbox{ID: "sb1", Status: Failed, Reason: "out of memory"}
	if err := require(failed, actResume); err == nil || !strings.Contains(err.Error(), "out of memory") {
		t.Errorf("resume of what was never paused: %v", err)
	}
	failed.PausedAt = failed.PausedAt.Add(1)
	if err := require(failed, actResume); err != nil {
		t.Errorf("resume of one that failed after its pause: %v", err)
	}
	if _, there := transitions[actCreate]; there {
		t.Error("a create begins with a new entry, in no state of an old one")
	}
}

func TestPauseAndResume(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	s := m.open(t, dir)
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		sb, err := s.Pause(t.Context(), idA)
		if err != nil || sb.Status != Paused {
			t.Fatalf("%+v, %v", sb, err)
		}
		if _, err := s.Pause(t.Context(), idA); !fault.Is(err, fault.InvalidState) {
			t.Errorf("pause of a paused: %v", err)
		}
		sb, err = s.Resume(t.Context(), idA, 0)
		if err != nil || sb.Status != Running || sb.GuestIP != "127.113.0.1" {
			t.Fatalf("%+v, %v", sb, err)
		}
		if _, err := s.Resume(t.Context(), idA, 0); !fault.Is(err, fault.InvalidState) {
			t.Errorf("resume of a running: %v", err)
		}
		if n := len(s.cfg.Snapshots.List()); n != 1 {
			t.Errorf("%d snapshots", n)
		}
		if len(m.frozen)+len(m.held) > 0 {
			t.Errorf("frozen %v, held %v", m.frozen, m.held)
		}
	}
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if err := s.Destroy(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if len(s.cfg.Snapshots.List()) > 0 || len(m.slots) > 0 {
		t.Errorf("the destroyed one has left %v and slots %v", s.cfg.Snapshots.List(), m.slots)
	}
}

// Whatever fails of a pause, the sandbox runs on as before, and its former snapshot stays.
func TestAPauseThatFailsChangesNothing(t *testing.T) {
	for _, step := range []string{"hold", "checkpoint"} {
		t.Run(step, func(t *testing.T) {
			m := newMachine()
			s := m.open(t, t.TempDir())
			if _, err := s.Create(t.Context(), request(idA)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Pause(t.Context(), idA); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Resume(t.Context(), idA, 0); err != nil {
				t.Fatal(err)
			}
			former := s.cfg.Snapshots.List()[0].ID
			m.setFailure(step, errors.New("broken"))
			if _, err := s.Pause(t.Context(), idA); err == nil {
				t.Error("the pause did not fail")
			}
			m.setFailure(step, nil)
			if sb, err := s.Get(idA); err != nil || sb.Status != Running || sb.PausedAt.IsZero() {
				t.Errorf("now %+v, %v", sb, err)
			}
			if _, err := s.Guest(idA); err != nil {
				t.Error(err)
			}
			if len(m.frozen)+len(m.held) > 0 {
				t.Errorf("frozen %v, held %v", m.frozen, m.held)
			}
			if list := s.cfg.Snapshots.List(); len(list) != 1 || list[0].ID != former {
				t.Errorf("snapshots %v, want %s", list, former)
			}
			if rec, err := s.records.read(idA); err != nil || rec.Sandbox.Status != Running || rec.Draft != "" {
				t.Errorf("record %+v, %v", rec, err)
			}
			if _, err := s.Pause(t.Context(), idA); err != nil {
				t.Errorf("once all is well again: %v", err)
			}
		})
	}
}

// A guest that refuses to rest does not escape its pause, as long as its runtime answers.
func TestAPauseNeedsNoWordOfTheGuest(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	m.setFailure("prepare", errors.New("broken"))
	m.setFailure("answer", errors.New("broken"))
	if _, err := s.Pause(t.Context(), idA); err == nil {
		t.Error("paused, though nothing of it answers")
	}
	if sb, err := s.Get(idA); err != nil || sb.Status != Running {
		t.Errorf("now %+v, %v", sb, err)
	}
	m.setFailure("answer", nil)
	if sb, err := s.Pause(t.Context(), idA); err != nil || sb.Status != Paused {
		t.Fatalf("%+v, %v", sb, err)
	}
	if sb, err := s.Resume(t.Context(), idA, 0); err != nil || sb.Status != Running {
		t.Errorf("%+v, %v", sb, err)
	}
}

// Whatever fails of a resume, the sandbox is still paused, and can be resumed later.
func TestAResumeThatFailsChangesNothing(t *testing.T) {
	for _, step := range []string{"unpark", "start", "init"} {
		t.Run(step, func(t *testing.T) {
			m := newMachine()
			s := m.open(t, t.TempDir())
			if _, err := s.Create(t.Context(), request(idA)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Pause(t.Context(), idA); err != nil {
				t.Fatal(err)
			}
			m.setFailure(step, errors.New("broken"))
			if _, err := s.Resume(t.Context(), idA, 0); err == nil {
				t.Error("the resume did not fail")
			}
			m.setFailure(step, nil)
			if sb, err := s.Get(idA); err != nil || sb.Status != Paused {
				t.Errorf("now %+v, %v", sb, err)
			}
			if taken := m.taken(); taken != nothingTaken {
				t.Errorf("left: %s", taken)
			}
			if sb, err := s.Resume(t.Context(), idA, 0); err != nil || sb.GuestIP != "127.113.0.1" {
				t.Errorf("once all is well again: %+v, %v", sb, err)
			}
		})
	}
}

// A byte that has changed is found before anything of the snapshot is used.
func TestADamagedSnapshotIsRefused(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	s := m.open(t, dir)
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(dir, "snapshots", s.cfg.Snapshots.List()[0].ID, "state", "memory")
	for name, damage := range map[string]string{"flipped": "oF " + idA, "cut short": "of", "empty": ""} {
		if err := os.WriteFile(memory, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Resume(t.Context(), idA, 0); err == nil || !strings.Contains(fault.MessageOf(err), "damaged") {
			t.Errorf("%s: %v", name, err)
		}
		if sb, err := s.Get(idA); err != nil || sb.Status != Paused || m.taken() != nothingTaken {
			t.Errorf("%s: now %+v, %v; %s", name, sb, err, m.taken())
		}
		if snap := s.cfg.Snapshots.List()[0]; snap.Differs == "" || snap.Damaged != "" {
			t.Errorf("%s: %+v", name, snap)
		}
	}
	if err := os.WriteFile(memory, []byte("of "+idA), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resume(t.Context(), idA, 0); err != nil || s.cfg.Snapshots.List()[0].Differs != "" {
		t.Error("mended:", err, s.cfg.Snapshots.List())
	}
}

// Of many who want to pause, resume or delete at once each hears what is so, and nothing
// is left over.
func TestManyAtOnce(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	expected := func(what string, err error) {
		if err != nil && !fault.Is(err, fault.InvalidState) && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				_, err := s.Pause(t.Context(), idA)
				expected("pause", err)
			}
		})
		wg.Go(func() {
			for range 20 {
				_, err := s.Resume(t.Context(), idA, 0)
				expected("resume", err)
			}
		})
	}
	wg.Wait()
	wg.Go(func() { _, err := s.Pause(t.Context(), idA); expected("pause", err) })
	wg.Go(func() { _, err := s.Resume(t.Context(), idA, 0); expected("resume", err) })
	wg.Go(func() { expected("destroy", s.Destroy(t.Context(), idA)) })
	wg.Wait()
	if _, err := s.Get(idA); err == nil {
		t.Error("it is still there")
	}
	if len(m.slots) > 0 || len(s.cfg.Snapshots.List()) > 0 || m.taken() != nothingTaken {
		t.Errorf("left: %s, slots %v, %v", m.taken(), m.slots, s.cfg.Snapshots.List())
	}
}

// A sandbox that dies says so, keeps its latest pause, and can be resumed from it.
func TestASandboxThatDiesCanBeResumedFromItsPause(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resume(t.Context(), idA, 0); err != nil {
		t.Fatal(err)
	}
	m.end(idA, runtime.Exit{OutOfMemory: true})
	eventually(t, "it is in error", func() bool { sb, err := s.Get(idA); return err == nil && sb.Status == Failed })
	sb, _ := s.Get(idA)
	if !strings.Contains(sb.Reason, "out of memory") || !strings.Contains(sb.Reason, "can be resumed from its pause of") || m.taken() != nothingTaken {
		t.Errorf("%+v, %s", sb, m.taken())
	}
	if sb, err := s.Resume(t.Context(), idA, 0); err != nil || sb.Status != Running || sb.Reason != "" {
		t.Errorf("%+v, %v", sb, err)
	}
}

// Who resumes a guest that does not answer any more hears that it is that, and may try again.
func TestResumeOfADeafGuestSaysSo(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pause is cleared", func() bool { return s.idle(idA) })
	for step, says := range map[string]string{"guest": "the daemon in it did not answer", "slow": "could not start the runtime in time"} {
		if step == "slow" {
			m.hold = make(chan struct{})
		} else {
			m.setFailure(step, errors.New("deaf"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := s.Resume(ctx, idA, 0)
		cancel()
		if !fault.Is(err, fault.DeadlineExceeded) || !strings.Contains(fault.MessageOf(err), says) {
			t.Errorf("%s: %v", step, err)
		}
		m.mu.Lock()
		clear(m.fail)
		m.hold = nil
		m.mu.Unlock()
	}
	if _, err := s.Resume(t.Context(), idA, 0); err != nil {
		t.Error(err)
	}
}
