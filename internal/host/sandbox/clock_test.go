package sandbox

import (
	"testing"
	"time"
)

// A guest ignores what is older than what it was told last: a host whose clock was set back
// must tell it later all the same, or it keeps the name servers of its former slot.
func TestAClockSetBackIsNotHeard(t *testing.T) {
	m, dir := newMachine(), t.TempDir()
	first := m.open(t, dir)
	if _, err := first.Create(t.Context(), request(idA)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Pause(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pause is cleared", func() bool { return first.idle(idA) })
	// As if it had been told an hour later than it is now.
	last := time.Now().Add(time.Hour)
	first.set(first.entries[idA], func(st *state) { st.told = last })
	first.crash()
	s := m.open(t, dir)
	for range 2 {
		if _, err := s.Resume(t.Context(), idA, 0); err != nil {
			t.Fatal(err)
		}
		if told := m.inits[idA].Timestamp; !told.After(last) {
			t.Fatalf("it was told of %s after %s", told, last)
		}
		last = m.inits[idA].Timestamp
		if _, err := s.Pause(t.Context(), idA); err != nil {
			t.Fatal(err)
		}
	}
}
