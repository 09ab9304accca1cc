package process

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// modes follows the output of a terminal and knows which of its modes are set. Only those
// are followed without which what comes later would look or work wrong: the alternate
// screen, the cursor's visibility, the keypad, the mouse and pasting, where it scrolls,
// whether it inserts, and which character sets it writes with. See
// https://invisible-island.net/xterm/ctlseqs/ctlseqs.html.
//
// A saved cursor (ESC 7) is not among them: where the cursor was cannot be known without
// keeping the whole screen, and programs that save it bring it back at once.
//
// Its zero value is a terminal that was just switched on. It is copied by assignment.
type modes struct {
	parser parser
	// changed has a bit for each of followedModes that is not as it was at first.
	changed uint32
	keypad  bool
	insert  bool
	region  region
	// charsets are those that G0 to G3 stand for, 0 for the one that they are at first.
	charsets [4]byte
	shifted  bool // G1 is in use instead of G0
}

// region is the part of the screen that scrolls, in lines from 1; its zero value is all.
type region struct {
	top, bottom int
	at          int64 // how much had been read when it was set, in bytes
}

// followedModes are the private ones, and are set in this order when a terminal is taken up
// again. The cursor and the wrapping of long lines are on at first, all others are off.
var followedModes = [...]int{47, 1047, 1049, 1, 6, 7, 25, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 2004}

// softModes are the followedModes that a soft reset resets.
var softModes = [...]int{1, 6, 7, 25}

func onAtFirst(mode int) bool { return mode == 7 || mode == 25 }

// insertMode is the ANSI mode in which what is written moves the rest of the line.
const insertMode = 4

// asciiSet is the character set that terminals begin with.
const asciiSet = 'B'

// charsetSlots are the intermediate bytes that say which of G0 to G3 is meant.
const charsetSlots = "()*+"

// What shifts to G1 and back to G0.
const (
	shiftOut = '\x0e'
	shiftIn  = '\x0f'
)

// follow reads output. It may be cut anywhere.
func (m *modes) follow(data []byte) {
	for len(data) > 0 {
		if m.parser.state != ground {
			m.parser.read++
			m.step(data[0])
			data = data[1:]
			continue
		}
		text, _, _ := bytes.Cut(data, escapeBytes)
		m.shift(text)
		m.parser.read += int64(len(text))
		if data = data[len(text):]; len(data) > 0 {
			m.parser.begin(escape)
			m.parser.read++
			data = data[1:]
		}
	}
}

// shift looks for the last shift in plain text; there mostly is none.
func (m *modes) shift(text []byte) {
	if bytes.IndexByte(text, shiftOut) >= 0 || bytes.IndexByte(text, shiftIn) >= 0 {
		m.shifted = bytes.LastIndexByte(text, shiftOut) > bytes.LastIndexByte(text, shiftIn)
	}
}

// step reads a byte of an escape sequence, and acts on it if it is the last one.
func (m *modes) step(c byte) {
	switch c {
	case shiftOut, shiftIn: // counts in the middle of a sequence, too
		m.shifted = c == shiftOut
		return
	}
	switch m.parser.step(c) {
	case escape:
		m.escaped(c)
	case control:
		m.controlled(c)
	}
}

// escaped acts on an escape sequence that ends with c.
func (m *modes) escaped(c byte) {
	between := m.parser.between
	switch slot := strings.IndexByte(charsetSlots, between); {
	case slot >= 0 && c == asciiSet:
		m.charsets[slot] = 0
	case slot >= 0:
		m.charsets[slot] = c
	case between != 0:
	case c == '=', c == '>':
		m.keypad = c == '='
	case c == 'c': // the program has reset the terminal
		*m = modes{parser: m.parser}
	}
}

// controlled acts on a control sequence (ESC [) that ends with c.
func (m *modes) controlled(c byte) {
	p := &m.parser
	switch {
	case p.marker == '?' && p.between == 0 && (c == 'h' || c == 'l'):
		for _, mode := range p.given() {
			m.set(mode, c == 'h')
		}
	case p.marker != 0:
	case p.between == 0 && (c == 'h' || c == 'l'):
		if slices.Contains(p.given(), insertMode) {
			m.insert = c == 'h'
		}
	case p.between == 0 && c == 'r':
		m.setRegion(p.given())
	case p.between == '!' && c == 'p':
		m.softReset()
	}
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

// setRegion acts on a scroll region, whose lines may be left out.
func (m *modes) setRegion(lines []int) {
	r := region{top: 1, at: m.parser.read}
	if len(lines) > 0 {
		r.top = max(lines[0], 1)
	}
	if len(lines) > 1 {
		r.bottom = lines[1]
	}
	if r.bottom == 0 {
		r.bottom = maxNumber
	}
	switch {
	case r.top >= r.bottom: // means nothing to a terminal
	case r.top == 1 && r.bottom == maxNumber:
		m.region = region{}
	default:
		m.region = r
	}
}

func (m *modes) softReset() {
	for _, mode := range softModes {
		m.set(mode, onAtFirst(mode))
	}
	m.keypad, m.insert, m.region, m.charsets, m.shifted = false, false, region{}, [4]byte{}, false
}

// fit forgets a scroll region that is the whole screen of that many rows, or that was set
// before the screen was made another size, resized: terminals forget it then. A client's
// screen may be of yet another size.
func (m *modes) fit(rows int, resized int64) {
	if m.region.at <= resized || m.region.top <= 1 && m.region.bottom >= rows {
		m.region = region{}
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
	if m.insert {
		out = append(out, "\x1b[4h"...)
	}
	if m.region.top > 0 {
		out = strconv.AppendInt(append(out, "\x1b["...), int64(m.region.top), 10)
		if m.region.bottom < maxNumber {
			out = strconv.AppendInt(append(out, ';'), int64(m.region.bottom), 10)
		}
		out = append(out, 'r')
	}
	for slot, set := range m.charsets {
		if set != 0 {
			out = append(out, '\x1b', charsetSlots[slot], set)
		}
	}
	if m.shifted {
		out = append(out, shiftOut)
	}
	return out
}
