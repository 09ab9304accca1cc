package process

import (
	"bytes"
	"slices"
	"strconv"
)

// modes follows the output of a terminal and knows which of its modes are set. Only those
// are followed without which what comes later would look or work wrong: the alternate
// screen, the cursor's visibility, the keypad, the mouse and pasting. See
// https://invisible-island.net/xterm/ctlseqs/ctlseqs.html, "DEC Private Mode Set".
//
// Its zero value is a terminal that was just switched on. It is copied by assignment.
type modes struct {
	state  parserState
	number int
	// numbers of the sequence that is being read
	numbers [maxNumbers]int
	count   int
	// changed has a bit for each of followedModes that is not as it was at first.
	changed uint32
	keypad  bool
}

type parserState uint8

// Where in an escape sequence the parser is.
const (
	ground  parserState = iota
	escape              // after ESC
	control             // after ESC [
	private             // after ESC [ ?
)

// maxNumbers is how many modes one sequence may change; programs change few at once.
const maxNumbers = 8

// maxMode is beyond every mode that is followed; larger numbers are not told apart.
const maxMode = 1 << 14

// followedModes are set in this order when a terminal is taken up again. The cursor and
// the wrapping of long lines are on at first, all others are off.
var followedModes = [...]int{47, 1047, 1049, 1, 7, 25, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 2004}

func onAtFirst(mode int) bool { return mode == 7 || mode == 25 }

// follow reads output. It may be cut anywhere.
func (m *modes) follow(data []byte) {
	for len(data) > 0 {
		if m.state == ground {
			i := bytes.IndexByte(data, '\x1b')
			if i < 0 {
				return
			}
			m.state = escape
			data = data[i+1:]
			continue
		}
		m.step(data[0])
		data = data[1:]
	}
}

// step reads one byte of an escape sequence.
func (m *modes) step(c byte) {
	switch {
	case c == '\x1b':
		m.state = escape
	case m.state == escape:
		m.escaped(c)
	case m.state == control && c == '?':
		m.state, m.number, m.count = private, 0, 0
	case m.state == private && c >= '0' && c <= '9':
		m.number = min(m.number*10+int(c-'0'), maxMode)
	case m.state == private && c == ';':
		m.endNumber()
	case c >= '@' && c <= '~': // the end of the sequence
		if m.state == private && (c == 'h' || c == 'l') {
			m.endNumber()
			for _, mode := range m.numbers[:m.count] {
				m.set(mode, c == 'h')
			}
		}
		m.state = ground
	}
}

func (m *modes) escaped(c byte) {
	m.state = ground
	switch c {
	case '[':
		m.state = control
	case '=', '>':
		m.keypad = c == '='
	case 'c':
		*m = modes{} // the program has reset the terminal
	}
}

func (m *modes) endNumber() {
	if m.count < maxNumbers {
		m.numbers[m.count] = m.number
		m.count++
	}
	m.number = 0
}

func (m *modes) set(mode int, on bool) {
	i := slices.Index(followedModes[:], mode)
	switch {
	case i < 0:
	case on == onAtFirst(mode):
		m.changed &^= 1 << i
	default:
		m.changed |= 1 << i
	}
}

// sequence returns what sets the modes of a new terminal to these.
func (m *modes) sequence() []byte {
	var out []byte
	for i, mode := range followedModes {
		if m.changed&(1<<i) == 0 {
			continue
		}
		out = append(strconv.AppendInt(append(out, "\x1b[?"...), int64(mode), 10), 'h')
		if onAtFirst(mode) {
			out[len(out)-1] = 'l'
		}
	}
	if m.keypad {
		out = append(out, "\x1b="...)
	}
	return out
}
