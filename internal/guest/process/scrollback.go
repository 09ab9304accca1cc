package process

import (
	"bytes"
	"slices"
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
	runs        []run    // from the oldest, sizes add up to size
	lost        Position // where what is kept begins
	modes       modes    // of the terminal, at start
	screen      Size     // of the terminal, now
	resized     int64    // how much had been written when it became that, in bytes
}

// Position is a place in a process's output: so many bytes of each kind came before it since
// the process began. There is a count for each kind, since it is only the pieces of one kind
// that every subscriber gets in the order in which they were written. What a terminal shows
// counts as Stdout.
type Position struct{ Stdout, Stderr int64 }

// of returns the count of a kind.
func (p *Position) of(kind Kind) *int64 {
	if kind == Stderr {
		return &p.Stderr
	}
	return &p.Stdout
}

// within returns what is nearest to p of all that lies between two positions.
func (p Position) within(first, last Position) Position {
	return Position{
		Stdout: min(max(p.Stdout, first.Stdout), last.Stdout),
		Stderr: min(max(p.Stderr, first.Stderr), last.Stderr),
	}
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
	*s.lost.of(kind) += int64(len(data))
	if kind == Terminal {
		s.modes.follow(data)
	}
}

// end is the position of what comes next.
func (s *scrollback) end() Position {
	end := s.lost
	for _, r := range s.runs {
		*end.of(r.kind) += int64(r.size)
	}
	return end
}

// replay returns what is kept, as events. Where a terminal's output is not kept from its
// beginning, the replay does not begin in the middle of an escape sequence or a character,
// but at the next line or escape sequence if there is one soon; and the modes that were
// set before, such as the alternate screen, are set first.
func (s *scrollback) replay() []Event {
	kept := s.all()
	var events []Event
	for i, r := range s.runs {
		data := kept[:r.size:r.size]
		kept = kept[r.size:]
		if i == 0 && r.kind == Terminal && s.lost != (Position{}) {
			skip, modes := s.resume(data)
			data = append(modes, data[skip:]...)
		}
		events = appendOutput(events, r.kind, data)
	}
	return events
}

// after returns the output from a position on, as events, or from the oldest that is kept
// if that is later; and where it begins. Unlike a replay it is what the process has written
// and nothing else.
func (s *scrollback) after(from Position) ([]Event, Position) {
	missed := from.Stdout < s.lost.Stdout
	from = from.within(s.lost, s.end())
	kept, at := s.all(), s.lost
	var events []Event
	for i, r := range s.runs {
		data := kept[:r.size:r.size]
		kept = kept[r.size:]
		if i == 0 && r.kind == Terminal && missed {
			skip, _ := s.resume(data)
			from.Stdout += int64(skip)
		}
		known := min(max(*from.of(r.kind)-*at.of(r.kind), 0), int64(r.size))
		events = appendOutput(events, r.kind, data[known:])
		*at.of(r.kind) += int64(r.size)
	}
	return events, from
}

// all returns a copy of what is kept.
func (s *scrollback) all() []byte {
	first, second := s.pieces(s.size)
	return slices.Concat(first, second)
}

// appendOutput appends data as events of a size that clients expect.
func appendOutput(events []Event, kind Kind, data []byte) []Event {
	for piece := range slices.Chunk(data, smallBuffer) {
		events = append(events, Event{Kind: kind, Data: piece})
	}
	return events
}

// resume returns how much of data, which is the oldest that is kept, to skip to a place at
// which a terminal can begin to read, and what sets its modes as they are there.
func (s *scrollback) resume(data []byte) (skip int, sequence []byte) {
	m := s.modes
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
	return skip, m.sequence()
}
