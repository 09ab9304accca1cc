package process

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func replayed(s *scrollback) string {
	var out strings.Builder
	for _, ev := range s.replay() {
		out.Write(ev.Data)
	}
	return out.String()
}

func TestScrollbackKeepsTheLatest(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var s scrollback
	var all []byte   // what was written
	var kinds []Kind // of each byte
	for range 3000 {
		kind := Stdout
		if random.IntN(3) == 0 {
			kind = Stderr
		}
		size := random.IntN(700)
		if random.IntN(200) == 0 {
			size = random.IntN(2 * maxKept)
		}
		if size == 0 {
			continue
		}
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		s.write(kind, data)
		all = append(all, data...)
		kinds = append(kinds, slices.Repeat([]Kind{kind}, size)...)
		if want := min(len(all), maxKept); s.size != want || len(s.ring) > maxKept {
			t.Fatalf("keeps %d of %d bytes in %d", s.size, len(all), len(s.ring))
		}
	}
	at := len(all) - s.size
	for _, ev := range s.replay() {
		if !bytes.Equal(ev.Data, all[at:at+len(ev.Data)]) {
			t.Fatalf("other bytes at %d", at)
		}
		for i := range ev.Data {
			if kinds[at+i] != ev.Kind {
				t.Fatalf("another kind at %d", at+i)
			}
		}
		at += len(ev.Data)
	}
	if at != len(all) {
		t.Errorf("the replay ends %d bytes early", len(all)-at)
	}
}

// Whatever a client has had of each kind, it gets the rest of it and nothing twice.
func TestScrollbackAfterAPosition(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var s scrollback
	written := map[Kind][]byte{}
	write := func(size int) {
		kind := Stdout + Kind(random.IntN(2))
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		s.write(kind, data)
		written[kind] = append(written[kind], data...)
	}
	check := func(from Position) {
		t.Helper()
		events, at := s.after(from)
		if want := from.within(s.lost, s.end()); at != want {
			t.Fatalf("from %+v on it begins at %+v, want %+v", from, at, want)
		}
		got := map[Kind][]byte{}
		for _, ev := range events {
			if len(ev.Data) == 0 || len(ev.Data) > smallBuffer {
				t.Fatalf("an event of %d bytes", len(ev.Data))
			}
			got[ev.Kind] = append(got[ev.Kind], ev.Data...)
		}
		if !bytes.Equal(got[Stdout], written[Stdout][at.Stdout:]) || !bytes.Equal(got[Stderr], written[Stderr][at.Stderr:]) {
			t.Fatalf("from %+v on there are %d and %d bytes, and others", from, len(got[Stdout]), len(got[Stderr]))
		}
	}
	check(Position{})
	for range 300 {
		for range random.IntN(5) {
			write(1 + random.IntN(3*smallBuffer))
		}
		end := s.end()
		if end != (Position{int64(len(written[Stdout])), int64(len(written[Stderr]))}) {
			t.Fatalf("it ends at %+v", end)
		}
		check(end)
		check(s.lost)
		check(Position{Stdout: random.Int64N(end.Stdout + 2), Stderr: random.Int64N(end.Stderr + 2)})
		check(Position{Stdout: end.Stdout - random.Int64N(min(end.Stdout, maxKept)+1), Stderr: end.Stderr - random.Int64N(min(end.Stderr, maxKept)+1)})
	}
	if s.lost.Stdout == 0 || s.lost.Stderr == 0 {
		t.Error("all of it was kept")
	}
}

func TestTerminalAfterAPosition(t *testing.T) {
	var s scrollback
	s.resize(Size{Cols: 80, Rows: 24})
	all := "\x1b[?1049h" + strings.Repeat("0123456789abcde\n", maxKept/8)
	s.write(Terminal, []byte(all))
	at := func(from int64) (string, int64) {
		var out strings.Builder
		events, at := s.after(Position{Stdout: from})
		for _, ev := range events {
			out.Write(ev.Data)
		}
		return out.String(), at.Stdout
	}
	for name, from := range map[string]int64{"in the middle": int64(len(all)) - 1001, "at the oldest": s.lost.Stdout, "at the end": int64(len(all))} {
		if got, begins := at(from); begins != from || got != all[from:] {
			t.Errorf("%s: from %d on there are %d bytes from %d on", name, from, len(got), begins)
		}
	}
	// What was missed is skipped to the beginning of a line, and nothing is made up.
	if got, begins := at(3); begins <= s.lost.Stdout || got != all[begins:] || !strings.HasPrefix(got, "0123") {
		t.Errorf("what was missed ends at %d: %.40q", begins, got)
	}
}

func TestScrollbackIsSmallForLittleAndBoundedForChanges(t *testing.T) {
	var s scrollback
	if s.replay() != nil || s.memory() != 0 {
		t.Error("an empty one takes memory")
	}
	s.write(Stdout, []byte("hello"))
	if s.memory() > minKept || replayed(&s) != "hello" {
		t.Errorf("takes %d bytes for %q", s.memory(), replayed(&s))
	}
	for i := range 3 * maxRuns {
		s.write(Stdout+Kind(i%2), []byte{byte('a' + i%26)})
	}
	if len(s.runs) > maxRuns || s.size > maxRuns+len("hello") {
		t.Errorf("%d runs of %d bytes", len(s.runs), s.size)
	}
}

func TestReplayOfATerminalBeginsWhereOneCanRead(t *testing.T) {
	fill := func(text string) string { return strings.Repeat(text, maxKept/len(text)+1) }
	for name, c := range map[string]struct{ before, after, want string }{
		"at a line":            {"x", fill("0123456789abcde\n"), "0123456789abcde\n0123"},
		"at a sequence":        {"x", "é" + fill("\x1b[31mred"), "\x1b[31mred\x1b[31mred"},
		"after half a one":     {"\x1b[3", "8;5;12mtext" + fill("\x1b[31mred"), "\x1b[31mred"},
		"not in a character":   {"x", fill("€"), "€€"},
		"alternate screen":     {"\x1b[?1049h\x1b[?25l\x1b[?1h\x1b=", fill("line\n"), "\x1b[?1049h\x1b[?1h\x1b[?25l\x1b=line\n"},
		"modes in half":        {"\x1b[?10", "00;1006h" + fill("line\n"), "\x1b[?1000h\x1b[?1006hline\n"},
		"modes set and unset":  {"\x1b[?1049h\x1b[?2004h\x1b[?1049l", fill("line\n"), "\x1b[?2004hline\n"},
		"terminal reset":       {"\x1b[?1049h\x1bc", fill("line\n"), "line\n"},
		"scroll region":        {"\x1b[3;20r", fill("line\n"), "\x1b[3;20rline\n"},
		"region from a line":   {"\x1b[3r", fill("line\n"), "\x1b[3rline\n"},
		"region of all":        {"\x1b[3;20r\x1b[r\x1b[1;24r\x1b[0;24r", fill("line\n"), "line\n"},
		"region of nothing":    {"\x1b[3;20r\x1b[9;9r\x1b[9;3r", fill("line\n"), "\x1b[3;20rline\n"},
		"not a region":         {"\x1b[?1;2r\x1b[1;2;3;4;1$r\x1b[>3;4r", fill("line\n"), "line\n"},
		"origin in a region":   {"\x1b[3;20r\x1b[?6h", fill("line\n"), "\x1b[?6h\x1b[3;20rline\n"},
		"insertion":            {"\x1b[4h", fill("line\n"), "\x1b[4hline\n"},
		"insertion ended":      {"\x1b[4;20h\x1b[20;4l", fill("line\n"), "line\n"},
		"line drawing":         {"\x1b(0", fill("line\n"), "\x1b(0line\n"},
		"line drawing in half": {"\x1b", "(0" + fill("line\n"), "\x1b(0line\n"},
		"line drawing ended":   {"\x1b(0\x1b(B", fill("line\n"), "line\n"},
		"shifted":              {"\x1b)0\x0e", fill("line\n"), "\x1b)0\x0eline\n"},
		"shifted back":         {"\x1b)0\x0etext\x0f", fill("line\n"), "\x1b)0line\n"},
		"shifted in a command": {"\x0e\x1b[1\x0f;\x0e2H", fill("line\n"), "\x0eline\n"},
		"broken off":           {"\x1b[?1049\x18h\x1b[?100\x7f0h", fill("line\n"), "\x1b[?1000hline\n"},
		"soft reset":           {"\x1b[?1049;1;6;25h\x1b[?7l\x1b=\x1b[4h\x1b[2;3r\x1b(0\x0e\x1b[!p", fill("line\n"), "\x1b[?1049hline\n"},
		"reset of all":         {"\x1b[?1049;1h\x1b=\x1b[4h\x1b[2;3r\x1b(0\x0e\x1bc", fill("line\n"), "line\n"},
		"unknown and nonsense": {"\x1b[?99999999999999;5h\x1b]0;title\x07\x1b[>4;2m\x1b[\x1b[?7l", fill("line\n"), "\x1b[?7lline\n"},
	} {
		var s scrollback
		s.resize(Size{Cols: 80, Rows: 24})
		s.write(Terminal, []byte(c.before))
		for rest := []byte(c.after); len(rest) > 0; {
			n := min(len(rest), 4095) // as terminals bring it
			s.write(Terminal, rest[:n])
			rest = rest[n:]
		}
		got := replayed(&s)
		if !strings.HasPrefix(got, c.want) || !strings.HasSuffix(c.after, got[len(got)-maxKept/2:]) {
			t.Errorf("%s: the replay begins %q, want %q", name, got[:min(60, len(got))], c.want)
		}
		if s.write(Terminal, []byte("more")); !strings.HasSuffix(replayed(&s), "more") {
			t.Errorf("%s: a replay changes what is kept", name)
		}
	}
	var s scrollback
	s.write(Terminal, []byte("all of \x1b[?1049h it"))
	if got := replayed(&s); got != "all of \x1b[?1049h it" {
		t.Errorf("what is there from the beginning is changed: %q", got)
	}
}

// A terminal that is made another size forgets its scroll region.
func TestReplayAfterResizing(t *testing.T) {
	const region = "\x1b[2;20r"
	for name, c := range map[string]struct {
		write []string
		want  bool
	}{
		"set before":       {[]string{region, "resize"}, false},
		"set after":        {[]string{"resize", region}, true},
		"in what is kept":  {[]string{region, strings.Repeat("line\n", maxKept/5+1), "resize"}, false},
		"to the same size": {[]string{"resize", region, "resize"}, true},
	} {
		var s scrollback
		s.resize(Size{Cols: 80, Rows: 24})
		for _, text := range c.write {
			if text == "resize" {
				s.resize(Size{Cols: 80, Rows: 30})
				continue
			}
			s.write(Terminal, []byte(text))
		}
		s.write(Terminal, bytes.Repeat([]byte("line\n"), maxKept))
		if got := strings.HasPrefix(replayed(&s), region); got != c.want {
			t.Errorf("%s: the region is set again: %v", name, got)
		}
	}
}

// FuzzModes checks that output may come in any pieces.
func FuzzModes(f *testing.F) {
	for _, seed := range []string{"plain", "\x1b[?1049h", "\x1b[?1;25l\x1b=", "\x1b\x1b[?7l\x1bc", "\x1b[?1000;;2004hé\xff",
		"\x1b[2;5r\x1b[;7r\x1b[3r", "\x1b(0\x1b)0\x0ex\x0f", "\x1b[4h\x1b[!p\x1b*A", "\x1b[\x18(0\x1b%G\x1b( @"} {
		f.Add([]byte(seed), 2)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		var whole, halves modes
		whole.follow(data)
		cut = max(0, min(cut, len(data)))
		halves.follow(data[:cut])
		halves.follow(data[cut:])
		if whole != halves {
			t.Errorf("%+v in one piece, %+v in two", whole, halves)
		}
		var again modes
		again.follow(whole.sequence())
		whole.parser, again.parser, whole.region.at, again.region.at = parser{}, parser{state: again.parser.state}, 0, 0
		if again != whole {
			t.Errorf("%q does not set %+v", whole.sequence(), whole)
		}
	})
}

func BenchmarkScrollback(b *testing.B) {
	for _, size := range []int{64, 4095, largeBuffer} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var s scrollback
			data := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				s.write(Stdout, data)
			}
		})
	}
}
