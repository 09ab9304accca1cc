package sandbox

import (
	"fmt"
	"strings"
	"testing"
)

// tally knows how far sandboxes were and what was written to them: that never goes back.
type tally struct {
	h      *host
	counts map[string]int
	notes  map[string]string
	n      int
}

func newTally(h *host) *tally {
	return &tally{h: h, counts: map[string]int{}, notes: map[string]string{}}
}

// look looks at a running sandbox and notes how far it is.
func (ta *tally) look(t testing.TB, id string) {
	t.Helper()
	now := ta.h.count(t, id)
	if now < ta.counts[id] {
		t.Errorf("the counter of %s went from %d to %d", id, ta.counts[id], now)
	}
	ta.counts[id] = now
	if note := ta.notes[id]; note != "" {
		if got := ta.h.mustAnswer(t, id, "cat /root/note /dev/shm/note"); got != note+"\n"+note {
			t.Errorf("%s has %q, %q was written", id, strings.ReplaceAll(got, "\n", " "), note)
		}
	}
}

// write writes something new to a running sandbox, to its disk and to its memory.
func (ta *tally) write(t testing.TB, id string) {
	t.Helper()
	ta.n++
	note := fmt.Sprintf("%s-%d", id, ta.n)
	ta.h.mustAnswer(t, id, "echo "+note+" | tee /root/note >/dev/shm/note")
	ta.notes[id] = note
}

func (ta *tally) forget(id string) {
	delete(ta.counts, id)
	delete(ta.notes, id)
}
