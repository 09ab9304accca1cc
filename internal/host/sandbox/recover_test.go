package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// A record says what a process that died was about to do; the next one finishes it, undoes
// it, or takes over what runs.
func TestOpenGoesOnFromRecords(t *testing.T) {
	for name, test := range map[string]struct {
		status    Status
		dead      bool // the sentry has ended meanwhile
		committed bool // the pause under way had its snapshot on the disk
		want      Status
		says      string
	}{
		"running":                      {status: Running, want: Running},
		"running, dead":                {status: Running, dead: true, want: Failed, says: "can be resumed from its pause"},
		"pausing":                      {status: Pausing, want: Running},
		"pausing, committed":           {status: Pausing, committed: true, want: Running},
		"pausing, dead":                {status: Pausing, dead: true, want: Failed, says: "can be resumed from its pause"},
		"pausing, committed and dead":  {status: Pausing, committed: true, dead: true, want: Paused},
		"paused, and its run is there": {status: Paused, want: Paused},
		"resuming":                     {status: Resuming, want: Paused, says: "as it was when it was paused"},
		"in error":                     {status: Failed, want: Failed},
		"being made":                   {status: Starting},
		"being removed":                {status: Stopping},
		"removed":                      {status: Stopped},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			dir := t.TempDir()
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
			e := first.entries[idA]
			// As in the middle of a pause: nobody knows whether it was frozen.
			m.frozen[idA], m.held[e.run.slot.Index] = true, true
			if test.committed {
				commit(t, first, "pa-new")
			}
			first.set(e, func(st *state) { st.sandbox.Status, st.draft = test.status, "pa-new" })
			first.crash()
			if test.dead {
				m.end(idA, runtime.Exit{})
			}

			s := m.open(t, dir)
			sb, err := s.Get(idA)
			if test.want == "" {
				if err == nil || m.taken() != nothingTaken || len(s.cfg.Snapshots.List()) > 0 {
					t.Fatalf("it is there: %+v; %s, %v", sb, m.taken(), s.cfg.Snapshots.List())
				}
				return
			}
			if err != nil || sb.Status != test.want || !strings.Contains(sb.Reason, test.says) {
				t.Fatalf("it is %+v, %v", sb, err)
			}
			if runs := m.taken() != nothingTaken; runs != (test.want == Running) {
				t.Errorf("taken: %s", m.taken())
			}
			if len(m.frozen)+len(m.held) > 0 {
				t.Errorf("frozen %v, held %v", m.frozen, m.held)
			}
			if list := s.cfg.Snapshots.List(); len(list) != 1 {
				t.Errorf("snapshots %v", list)
			}
			if test.want != Running {
				if _, err := s.Resume(t.Context(), idA, 0); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Guest(idA); err != nil {
				t.Error(err)
			}
		})
	}
}

// commit makes a snapshot of A as a pause does.
func commit(t *testing.T, s *Service, id string) {
	t.Helper()
	draft, err := s.cfg.Snapshots.Draft(t.Context(), id, 0)
	if err == nil {
		err = os.WriteFile(filepath.Join(draft.Dir(), "memory"), []byte("of "+idA), 0o600)
	}
	if err == nil {
		_, err = draft.Commit(t.Context(), s.manifest(s.entries[idA], snapshot.Pause, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What was written down of a sandbox brings it back when its record is lost.
func TestALostRecordIsFoundInASnapshot(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"damaged": func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
		"gone":    os.Remove,
	} {
		t.Run(name, func(t *testing.T) { findLostRecord(t, lose) })
	}
}

func findLostRecord(t *testing.T, lose func(path string) error) {
	m := newMachine()
	dir := t.TempDir()
	s := m.open(t, dir)
	for _, id := range []string{idA, idB} {
		if _, err := s.Create(t.Context(), request(id)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is given back", func() bool { return m.taken() == "slots [2], running ["+idB+"]" })
	s.crash()
	if err := errors.Join(lose(s.records.path(idA)), os.WriteFile(s.records.path(idB), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s = m.open(t, dir)
	if sb, err := s.Get(idA); err != nil || sb.Status != Failed || !strings.Contains(sb.Reason, "can be resumed from its pause") {
		t.Errorf("%+v, %v", sb, err)
	}
	if sb, err := s.Resume(t.Context(), idA, 0); err != nil || sb.Resources != request(idA).Resources || m.inits[idA].EnvVars["COLOUR"] != "green" {
		t.Errorf("%+v, %v, told %+v", sb, err, m.inits[idA])
	}
	if sb, err := s.Get(idB); err != nil || sb.Status != Failed || sb.Reason == "" {
		t.Errorf("%+v, %v", sb, err)
	}
	if taken := m.taken(); taken != "slots [1], running ["+idA+"]" {
		t.Errorf("taken: %s", taken)
	}
}

// Some are removed while others are taken up.
func TestOpenFindsManyAtOnce(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	first := m.open(t, dir)
	ids := make([]string, 3*parallelEnds)
	for i := range ids {
		ids[i] = fmt.Sprintf("sb%020d", i)
		if _, err := first.Create(t.Context(), request(ids[i])); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			first.set(first.entries[ids[i]], func(st *state) { st.sandbox.Status = Stopping })
		}
	}
	first.crash()
	s := m.open(t, dir)
	for i, id := range ids {
		sb, err := s.Get(id)
		if i%2 == 0 && (err != nil || sb.Status != Running) || i%2 == 1 && err == nil {
			t.Errorf("%s is %+v, %v", id, sb, err)
		}
	}
}

// Copies that somebody was told of last, also when their snapshot could not be removed.
func TestCopiesOutliveTheirSnapshot(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	cfg := m.config(t, dir)
	var there string
	aside := filepath.Join(dir, "aside")
	cfg.At = func(point string) {
		if point == "fork.copied" { // without its directory it cannot be removed
			there = filepath.Join(dir, "snapshots", cfg.Snapshots.List()[0].ID)
			if err := os.Rename(there, aside); err != nil {
				t.Error(err)
			}
		}
	}
	first := m.openWith(t, cfg)
	if _, err := first.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Snapshots().Fork(t.Context(), idA, []string{idB, idC}); err != nil {
		t.Fatal(err)
	}
	first.crash()
	if err := os.Rename(aside, there); err != nil {
		t.Fatal(err)
	}
	s := m.open(t, dir)
	for _, id := range []string{idA, idB, idC} {
		if sb, err := s.Get(id); err != nil || sb.Status != Running {
			t.Errorf("%s is %+v, %v", id, sb, err)
		}
	}
	if list := s.cfg.Snapshots.List(); len(list) > 0 {
		t.Errorf("snapshots %v", list)
	}
}

// A stop that pauses leaves nothing running, also of those who come meanwhile.
func TestAStopPausesEverything(t *testing.T) {
	m := newMachine()
	dir := t.TempDir()
	cfg := m.config(t, dir)
	var first *Service
	cfg.At = func(point string) {
		if point == "pause.hold" {
			if _, err := first.Create(t.Context(), request(idC)); !fault.Is(err, fault.HostUnavailable) {
				t.Errorf("a create while it stops: %v", err)
			}
		}
	}
	first = m.openWith(t, cfg)
	for _, id := range []string{idA, idB} {
		if _, err := first.Create(t.Context(), request(id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Close(t.Context(), StopPause); err != nil {
		t.Fatal(err)
	}
	if taken := m.taken(); taken != nothingTaken {
		t.Errorf("left: %s", taken)
	}
	first.crash()
	s := m.open(t, dir)
	for _, id := range []string{idA, idB} {
		if sb, err := s.Resume(t.Context(), id, 0); err != nil || sb.Status != Running {
			t.Errorf("%+v, %v", sb, err)
		}
	}
}

// Of a snapshot whose manifest cannot be read only its id says what it was. It stays as long
// as a sandbox needs it or might, and can be removed by hand when none is known to.
func TestDamagedSnapshotsThatNobodyNeeds(t *testing.T) {
	const fork, pause, template = "fk00000000000000000000", "pa00000000000000000000", "sn00000000000000000000"
	m, dir := newMachine(), t.TempDir()
	s := m.open(t, dir)
	if _, err := s.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pause is cleared", func() bool { return s.idle(idA) })
	own := s.entries[idA].snapshot
	reopen := func(damage ...string) (list []string) {
		s.crash()
		for _, id := range damage {
			path := filepath.Join(dir, "snapshots", id, "manifest.json")
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("{"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		s = m.open(t, dir)
		for _, snap := range s.cfg.Snapshots.List() {
			list = append(list, snap.ID)
		}
		return list
	}
	if got := reopen(own, fork, pause, template); !slices.Equal(got, slices.Sorted(slices.Values([]string{own, template}))) {
		t.Errorf("kept: %v", got)
	}
	if list := s.Snapshots().List(); len(list) != 1 || list[0].ID != template || list[0].Damaged == "" {
		t.Errorf("listed: %+v", list)
	}
	if err := s.Snapshots().Delete(t.Context(), own); !fault.Is(err, fault.NotFound) {
		t.Errorf("what a sandbox is to be resumed from: %v", err)
	}
	// A sandbox of which nothing is known may be the one.
	if err := os.WriteFile(s.records.path(idB), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := reopen(pause); !slices.Contains(got, pause) {
			t.Errorf("kept: %v", got)
		}
	}
	for _, id := range []string{pause, template} {
		if err := s.Snapshots().Delete(t.Context(), id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if list := s.cfg.Snapshots.List(); len(list) != 1 {
		t.Errorf("left: %+v", list)
	}
}
