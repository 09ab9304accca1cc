package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// dialect is the messages of one kind of WebSocket. What it returns is valid until its
// next call; decode may be called beside the others.
type dialect interface {
	decode(raw []byte) (clientMessage, error)
	started(sandbox.Started) []byte
	// output returns the message with what a process wrote, nil when all of it has to wait
	// for more.
	output(sandbox.EventKind, []byte) []byte
	// rest returns the messages with what still waits when a process has ended.
	rest() [][]byte
	exited(sandbox.Exit) []byte
	failed(err error, fatal bool) []byte
	// ping returns the message that is sent now and then; nil for none.
	ping() []byte
}

// maxPiece is how much output is joined to one message, in bytes.
const maxPiece = 256 << 10

// encoder turns output into messages, few and large ones when much comes at once.
type encoder struct {
	dialect dialect
	send    func([]byte) error

	kind    sandbox.EventKind
	pending []byte // output of this kind that was not sent yet
}

// add takes what a process wrote. It is sent by sendPending at the latest.
func (e *encoder) add(ev sandbox.Event) error {
	if len(e.pending) > 0 && (ev.Kind != e.kind || len(e.pending)+len(ev.Data) > maxPiece) {
		if err := e.sendPending(); err != nil {
			return err
		}
	}
	e.kind = ev.Kind
	if len(e.pending) == 0 {
		e.pending = slices.Clip(ev.Data) // most come alone, and need no copy
		return nil
	}
	e.pending = append(e.pending, ev.Data...)
	return nil
}

func (e *encoder) sendPending() error {
	if len(e.pending) == 0 {
		return nil
	}
	m := e.dialect.output(e.kind, e.pending)
	e.pending = nil
	if m == nil {
		return nil
	}
	return e.send(m)
}

// flush sends all that there is.
func (e *encoder) flush() error {
	if err := e.sendPending(); err != nil {
		return err
	}
	for _, m := range e.dialect.rest() {
		if err := e.send(m); err != nil {
			return err
		}
	}
	return nil
}

// commandDialect is the messages about a command. The zero value is ready.
type commandDialect struct {
	out, errs joiner
	buf       []byte
}

func (*commandDialect) decode(raw []byte) (clientMessage, error) { return decodeCommandMessage(raw) }

func (*commandDialect) started(s sandbox.Started) []byte { return startedMessage(typeStart, s) }

func (d *commandDialect) output(kind sandbox.EventKind, data []byte) []byte {
	if kind == sandbox.Stderr {
		return d.message(typeStderr, d.errs.push(data))
	}
	// What a terminal shows comes from both streams of its programs, and is shown as one.
	return d.message(typeStdout, d.out.push(data))
}

func (d *commandDialect) rest() [][]byte {
	var all [][]byte
	for _, m := range [][]byte{slices.Clone(d.message(typeStdout, d.out.flush())), d.message(typeStderr, d.errs.flush())} {
		if len(m) > 0 {
			all = append(all, m)
		}
	}
	return all
}

// message makes a message of output: as text when it is UTF-8, otherwise as base64.
func (d *commandDialect) message(kind string, data []byte) []byte {
	if len(data) == 0 {
		return nil
	}
	d.buf = append(append(append(d.buf[:0], `{"type":"`...), kind...), `","data":"`...)
	if utf8.Valid(data) {
		d.buf = append(appendEscaped(d.buf, data), `"}`...)
	} else {
		d.buf = append(base64.StdEncoding.AppendEncode(d.buf, data), `","encoding":"base64"}`...)
	}
	return d.buf
}

func (*commandDialect) exited(e sandbox.Exit) []byte        { return exitedMessage(e) }
func (*commandDialect) failed(err error, fatal bool) []byte { return failedMessage(err, fatal) }
func (*commandDialect) ping() []byte                        { return nil }

// terminalDialect is the messages about a terminal. The zero value is ready.
type terminalDialect struct{ buf []byte }

func (*terminalDialect) decode(raw []byte) (clientMessage, error) { return decodeTerminalMessage(raw) }

func (*terminalDialect) started(s sandbox.Started) []byte { return startedMessage(typeStarted, s) }

func (d *terminalDialect) output(_ sandbox.EventKind, data []byte) []byte {
	if len(data) == 0 {
		return nil
	}
	d.buf = append(d.buf[:0], `{"type":"output","data":"`...)
	d.buf = append(base64.StdEncoding.AppendEncode(d.buf, data), `"}`...)
	return d.buf
}

func (*terminalDialect) rest() [][]byte                      { return nil }
func (*terminalDialect) exited(e sandbox.Exit) []byte        { return exitedMessage(e) }
func (*terminalDialect) failed(err error, fatal bool) []byte { return failedMessage(err, fatal) }
func (*terminalDialect) ping() []byte                        { return []byte(`{"type":"ping"}`) }

func startedMessage(kind string, s sandbox.Started) []byte {
	type offset struct {
		Stdout uint64 `json:"stdout"`
		Stderr uint64 `json:"stderr"`
	}
	return marshal(struct {
		Type string `json:"type"`
		PID  uint32 `json:"pid"`
		Tag  string `json:"tag,omitempty"`
		// ReplayBytes is how much of the output that follows is of before.
		ReplayBytes uint64 `json:"replay_bytes,omitempty"`
		// Offset is where that output begins.
		Offset *offset `json:"offset,omitempty"`
	}{kind, s.PID, s.Tag, s.ReplayBytes, (*offset)(s.Offset)})
}

func exitedMessage(e sandbox.Exit) []byte {
	return marshal(struct {
		Type     string `json:"type"`
		ExitCode int32  `json:"exit_code"`
		Signal   string `json:"signal,omitempty"`
		TimedOut bool   `json:"timed_out,omitempty"`
	}{typeExit, e.Code, e.Signal, e.TimedOut})
}

func failedMessage(err error, fatal bool) []byte {
	return marshal(struct {
		Type  string `json:"type"`
		Data  string `json:"data"`
		Code  string `json:"code"`
		Fatal bool   `json:"fatal"`
	}{typeError, fault.MessageOf(err), string(fault.CodeOf(err)), fatal})
}

// marshal encodes one of the structures above, none of which can fail.
func marshal(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("httpapi: a message that is no JSON: " + strconv.Quote(err.Error()))
	}
	return raw
}

// mustEscape is the bytes of UTF-8 text that cannot stand in a JSON string as they are.
var mustEscape = func() (table [256]bool) {
	for c := range ' ' {
		table[c] = true
	}
	table['"'], table['\\'] = true, true
	return table
}()

// appendEscaped appends UTF-8 text as the inside of a JSON string. It does what
// encoding/json does, but for characters that are special only to HTML, at several times
// the speed: the output of commands is what most of the server's time goes to.
func appendEscaped(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	dst = slices.Grow(dst, len(text)+len(text)/16)
	plain := 0 // from here on text was not appended yet
	for i, c := range text {
		if !mustEscape[c] {
			continue
		}
		dst = append(dst, text[plain:i]...)
		plain = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
	}
	return append(dst, text[plain:]...)
}

// joiner puts characters together again that were split between two chunks of a stream.
// The zero value is ready.
type joiner struct {
	held []byte // the beginning of a character, at most utf8.UTFMax-1 bytes
}

// push returns all of the stream so far that was not yet returned, but for the beginning
// of a character at its end, which waits for its rest.
func (j *joiner) push(chunk []byte) []byte {
	data := chunk
	if len(j.held) > 0 {
		data = slices.Concat(j.held, chunk)
		j.held = nil
	}
	whole := len(data) - partialRune(data)
	j.held = append(j.held, data[whole:]...)
	return data[:whole]
}

// flush returns what still waits when the stream has ended.
func (j *joiner) flush() []byte {
	held := j.held
	j.held = nil
	return held
}

// partialRune is how many bytes at the end of data are the beginning of a character that
// is not complete.
func partialRune(data []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		tail := data[len(data)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
