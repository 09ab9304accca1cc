package process

import (
	"bytes"
	"unicode/utf8"
)

const (
	// maxKept bounds how much of a process's latest output is kept for those who connect
	// later, in bytes.
	maxKept = 256 << 10
	// minKept is what the first output takes; it doubles as more comes.
	minKept = 256
	// maxRuns bounds how often the kept output changes between stdout and stderr.
	maxRuns = 8 << 10
	// maxSkip is how far a replay may begin after the oldest byte kept, to begin where a
	// line or an escape sequence does; in bytes.
	maxSkip = 4 << 10
)

// scrollback keeps the latest output of a process in the order in which it came. Its zero
// value is empty and takes no memory. It is not safe for concurrent use.
type scrollback struct {
	ring        []byte // its length is a power of two; it is circular once it has its full size
	start, size int
	runs        []run // from the oldest, sizes add up to size
	dropped     bool  // something is kept no longer
	modes       modes // of the terminal, at start
	screen      Size  // of the terminal, now
	resized     int64 // how much had been written when it became that, in bytes
}

// run is a piece of output of one kind.
type run struct {
	kind Kind
	size int
}

func (s *scrollback) memory() int { return len(s.ring) }

// resize says that the terminal has another size from now on.
func (s *scrollback) resize(screen Size) {
	if screen != s.screen {
		s.screen, s.resized = screen, s.modes.parser.read+int64(s.size)
	}
}

// write adds output, and drops the oldest if there is too much.
func (s *scrollback) write(kind Kind, data []byte) {
	if len(data) > maxKept {
		cut := len(data) - maxKept
		s.drop(s.size)
		s.lose(kind, data[:cut])
		data = data[cut:]
	}
	s.drop(s.size + len(data) - maxKept)
	s.grow(s.size + len(data))
	at := (s.start + s.size) & (len(s.ring) - 1)
	n := copy(s.ring[at:], data)
	copy(s.ring, data[n:])
	s.size += len(data)
	if last := len(s.runs) - 1; last >= 0 && s.runs[last].kind == kind {
		s.runs[last].size += len(data)
		return
	}
	if len(s.runs) == maxRuns {
		s.drop(s.runs[0].size)
	}
	s.runs = append(s.runs, run{kind, len(data)})
}

// grow makes room for size bytes in all.
func (s *scrollback) grow(size int) {
	room := max(len(s.ring), minKept)
	for room < size {
		room *= 2
	}
	if room == len(s.ring) {
		return
	}
	ring := make([]byte, room)
	first, second := s.pieces(s.size)
	copy(ring[copy(ring, first):], second)
	s.ring, s.start = ring, 0
}

// pieces returns the oldest n bytes, which may go round the end of the ring.
func (s *scrollback) pieces(n int) (first, second []byte) {
	first = s.ring[s.start:min(s.start+n, len(s.ring))]
	return first, s.ring[:n-len(first)]
}

// drop drops the oldest n bytes; less than 1 is none.
func (s *scrollback) drop(n int) {
	for n > 0 {
		oldest := &s.runs[0]
		part := min(n, oldest.size)
		first, second := s.pieces(part)
		s.lose(oldest.kind, first)
		s.lose(oldest.kind, second)
		s.start = (s.start + part) & (len(s.ring) - 1)
		s.size -= part
		n -= part
		if oldest.size -= part; oldest.size == 0 {
			s.runs = s.runs[1:]
		}
	}
}

// lose takes note of output that is not kept.
func (s *scrollback) lose(kind Kind, data []byte) {
	s.dropped = s.dropped || len(data) > 0
	if kind == Terminal {
		s.modes.follow(data)
	}
}

// replay returns what is kept, as events. Where a terminal's output is not kept from its
// beginning, the replay does not begin in the middle of an escape sequence or a character,
// but at the next line or escape sequence if there is one soon; and the modes that were
// set before, such as the alternate screen, are set first.
func (s *scrollback) replay() []Event {
	kept := make([]byte, 0, s.size)
	first, second := s.pieces(s.size)
	kept = append(append(kept, first...), second...)
	var events []Event
	for i, r := range s.runs {
		data := kept[:r.size:r.size]
		kept = kept[r.size:]
		if i == 0 && r.kind == Terminal && s.dropped {
			data = s.resume(data)
		}
		for len(data) > 0 {
			n := min(len(data), smallBuffer)
			events = append(events, Event{Kind: r.kind, Data: data[:n:n]})
			data = data[n:]
		}
	}
	return events
}

// resume returns data, which is the oldest that is kept, from a place at which a terminal
// can begin to read, and before it what sets the terminal's modes as they are there.
func (s *scrollback) resume(data []byte) []byte {
	m, skip := s.modes, 0
	for m.parser.state != ground && skip < len(data) {
		m.follow(data[skip : skip+1])
		skip++
	}
	for skip < len(data) && !utf8.RuneStart(data[skip]) {
		skip++
	}
	near := data[skip:min(skip+maxSkip, len(data))]
	if i := bytes.IndexAny(near, "\n\x1b"); i >= 0 {
		if near[i] == '\n' {
			i++
		}
		m.follow(near[:i])
		skip += i
	}
	m.fit(int(s.screen.Rows), s.resized)
	return append(m.sequence(), data[skip:]...)
}
