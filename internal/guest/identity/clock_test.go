package identity

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"
)

// The clock of a machine that was frozen is behind by the time it slept, and certificates
// then seem to be of the future.
func TestClock(t *testing.T) {
	users, _ := testUsers(t)
	var set []time.Time
	refused := errors.New("not permitted")
	id := New(users, System{SetClock: func(now time.Time) error {
		set = append(set, now)
		return refused // which must not fail the update
	}}, slog.New(slog.DiscardHandler))
	now := time.Now()
	past, future := now.Add(-time.Hour), now.Add(time.Hour)
	for _, at := range []time.Time{{}, past, past.Add(-time.Minute), now, now.Add(clockTolerance / 2), future, now} {
		if err := id.Apply(Update{Timestamp: at}, ""); err != nil {
			t.Fatal(err)
		}
	}
	if want := []time.Time{past, future}; !slices.Equal(set, want) {
		t.Errorf("the clock was set to %v, want %v", set, want)
	}
}
