package sandbox

import (
	"encoding/json"
	"errors"
	"io/fs"
	"sync"
	"testing"
)

// A loss of power may leave a file empty that was written quickly. Once it says `paused` on the
// disk, a record is replaced durably or not at all.
func TestTheRecordOfAPauseSurvivesALossOfPower(t *testing.T) {
	m := newMachine()
	s := m.open(t, t.TempDir())
	var mu sync.Mutex
	var quick []Sandbox
	write := s.records.quick
	s.records.quick = func(path string, data []byte, mode fs.FileMode) error {
		var rec record
		if err := json.Unmarshal(data, &rec); err != nil {
			t.Error(err)
		}
		mu.Lock()
		quick = append(quick, rec.Sandbox)
		if now, err := s.records.read(idA); err == nil && now.Sandbox.Status == Paused && rec.Sandbox.Status != Stopping {
			t.Errorf("the record of a pause was replaced quickly, by %+v", rec.Sandbox)
		}
		mu.Unlock()
		return write(path, data, mode)
	}
	pause := func() error {
		_, err := s.Pause(t.Context(), idA)
		eventually(t, "the pause is cleared", func() bool { return s.idle(idA) })
		return err
	}
	for what, do := range map[string]func() error{
		"pause": pause,
		"start": func() error {
			err := pause()
			s.putToRest(t.Context(), s.entries[idA])
			return err
		},
		"resume": func() error {
			err := pause()
			_, resumed := s.Resume(t.Context(), idA, 0)
			return errors.Join(err, resumed)
		},
		"failed resume": func() error {
			err := pause()
			m.setFailure("start", errors.New("no"))
			defer m.setFailure("start", nil)
			if _, err := s.Resume(t.Context(), idA, 0); err == nil {
				t.Error("it was resumed")
			}
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := s.Create(t.Context(), request(idA)); err != nil {
				t.Fatal(err)
			}
			quick = nil
			if err := do(); err != nil {
				t.Fatal(err)
			}
			for _, sb := range quick {
				if sb.Status == Paused {
					t.Errorf("written quickly: %+v", sb)
				}
			}
			if err := s.Destroy(t.Context(), idA); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// idle says whether nobody works on a sandbox.
func (s *Service) idle(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, busy := s.entries[id].busy()
	return !busy
}
