package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// silence is how long the server may say nothing, which pings every 30 s.
	silence = 75 * time.Second
	// typedChunk is how much input goes in one message, in bytes.
	typedChunk = 64 << 10
)

// terminalMessage is what a client sends over pty. What its fields mean is in
// api/openapi.yaml.
type terminalMessage struct {
	Type       string            `json:"type"`
	Cmd        string            `json:"cmd,omitempty"`
	Args       []string          `json:"args,omitempty"`
	Envs       map[string]string `json:"envs,omitempty"`
	Cwd        string            `json:"cwd,omitempty"`
	User       string            `json:"user,omitempty"`
	TimeoutSec int64             `json:"timeout_sec,omitempty"`
	Tag        string            `json:"tag,omitempty"`
	Cols       int               `json:"cols,omitempty"`
	Rows       int               `json:"rows,omitempty"`
	Data       string            `json:"data,omitempty"`
}

// remoteTerminal is one terminal of a sandbox and the person who uses it.
type remoteTerminal struct {
	server *server
	id     string // of the sandbox
	start  terminalMessage
	tag    string // empty until the server has said it
	attach bool   // go to the terminal that has the tag
	// killWhenStopped is whether a signal to this program ends the terminal too.
	killWhenStopped bool
	ended           bool // it is known that the terminal is no more
	paused          bool // it goes on when the sandbox is resumed

	pid       int64     // of what runs in it, 0 until the server has said it
	connected time.Time // when the server took the latest connection, zero if it has not
	trouble   outage

	local *localTerminal
	keys  *keyboard
	// replay is what was on the screen before, as far as it has come; toReplay is how many
	// bytes of it are to come.
	replay   []byte
	toReplay int64
}

// run gives the person's terminal to the remote one until that ends. A nil end without an
// error means that the person has detached.
func (r *remoteTerminal) run(ctx context.Context, in, out *os.File, keys bool) (how *ended, err error) {
	// The first connection comes before the terminal is taken: what is wrong with it is
	// said in peace.
	conn, err := r.server.dialStream(ctx, r.id, "pty")
	if err != nil {
		return nil, err
	}
	r.local, err = takeTerminal(in, out, "wrenn: "+r.id, keys)
	if err != nil {
		_ = conn.CloseNow()
		return nil, err
	}
	defer r.local.giveBack()
	r.keys = newKeyboard()
	if keys {
		go r.local.guard(func() { r.keys.read(in) })
	}
	for {
		var cut *interruption
		how, err = r.follow(ctx, conn)
		switch {
		case ctx.Err() != nil:
			r.stopped(ctx)
			return nil, ctx.Err()
		case !errors.As(err, &cut):
			return how, err
		}
		if conn, err = r.reconnect(ctx, cut.reason); conn == nil {
			if ctx.Err() != nil {
				r.stopped(ctx)
			}
			return nil, err
		}
	}
}

// follow uses one connection to its end, or the terminal's.
func (r *remoteTerminal) follow(ctx context.Context, conn *websocket.Conn) (how *ended, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	defer func() {
		cancel()
		_ = conn.CloseNow()
		sending.Wait()
	}()
	first := r.start
	first.Type = "start"
	if r.attach {
		first = terminalMessage{Type: "connect", Tag: r.tag}
	} else {
		first.Cols, first.Rows = r.local.size()
	}
	if err := sendJSON(ctx, conn, first); err != nil {
		return nil, r.broken(err)
	}
	var failure error
	for {
		m, err := receiveMessage(ctx, conn)
		if r.tag != "" && r.hasDetached() {
			return nil, nil
		}
		if err != nil {
			r.paused = websocket.CloseStatus(err) == statusPaused
			return nil, cmp.Or(failure, r.broken(err))
		}
		switch m.Type {
		case "started":
			if err := r.begin(m); err != nil {
				return nil, err
			}
			sending.Go(func() { r.local.guard(func() { r.send(ctx, conn) }) })
		case "output":
			data, err := base64.StdEncoding.DecodeString(m.Data)
			if err == nil {
				err = r.show(data)
			}
			if err != nil {
				return nil, err
			}
		case "exit":
			r.ended = true
			return &m.ended, nil
		case "error":
			if m.Fatal {
				failure = r.fatal(m.failure())
			}
		}
	}
}

func (r *remoteTerminal) hasDetached() bool {
	select {
	case <-r.keys.detached:
		return true
	default:
		return false
	}
}

// broken is the error for a connection that ended before the terminal did. One that never
// got as far as to name its terminal cannot be followed by another.
func (r *remoteTerminal) broken(err error) error {
	if r.tag == "" {
		return r.server.unreachable(err)
	}
	return &interruption{fault.Wrap(err, fault.HostUnavailable, "the connection broke")}
}

// statusPaused is the status with which a server ends the WebSockets of a sandbox that is
// paused.
const statusPaused websocket.StatusCode = 4001

// fatal is what the last message of a server means.
func (r *remoteTerminal) fatal(err error) error {
	if r.tag != "" && mayPass(err) {
		return &interruption{err}
	}
	r.ended = true
	return err
}

// begin is what happens when the server has named the terminal. A tag may be given to a
// newer terminal once the older one has ended, or even before: what is typed for the one
// must not reach the other.
func (r *remoteTerminal) begin(m serverMessage) error {
	if r.pid != 0 && m.PID != r.pid {
		r.ended = true
		return fault.New(fault.Conflict,
			"the tag %s belongs to another terminal now (pid %d, and yours was %d); to go there: wrenn shell %s --attach %[1]s",
			printable(m.Tag), m.PID, r.pid, r.id)
	}
	r.connected = time.Now()
	r.replay, r.toReplay = nil, m.ReplayBytes
	if r.attach {
		r.local.clear() // the screen is painted again from what was kept of it
	}
	r.tag, r.pid = m.Tag, m.PID
	r.local.setTitle("wrenn: " + r.id + " " + m.Tag)
	return nil
}

// questions are what a program asks a terminal: its type and version, its size, where its
// cursor is, its colours, its keys.
// What comes again from before must not ask again; the answers would look like typing.
var questions = regexp.MustCompile(`\x1b\[[>=?]?[0-9;]*[cn]|\x1b\[>[0-9]*q|\x1b\[(1[13-689]|2[01])(;[0-9]+)*t|\x1b\[\?u|\x1b\[[>?]?[0-9;]*\$p|\x1b\][0-9;]+;\?(\x07|\x1b\\)|\x1bP[$+]q[^\x1b]*\x1b\\|\x05`)

// show prints what the program prints, and what it printed before without its questions.
func (r *remoteTerminal) show(data []byte) error {
	if old := min(r.toReplay, int64(len(data))); old > 0 {
		r.replay = append(r.replay, data[:old]...)
		data = data[old:]
		if r.toReplay -= old; r.toReplay > 0 {
			return nil
		}
		data = append(questions.ReplaceAll(r.replay, nil), data...)
		r.replay = nil
	}
	_, err := r.local.Write(data)
	return err
}

// send tells the server what is typed and how large the terminal is, until the connection
// or the person is gone.
func (r *remoteTerminal) send(ctx context.Context, conn *websocket.Conn) {
	resized, stop := r.local.resizes()
	defer stop()
	tell := func() error {
		cols, rows := r.local.size()
		if cols == 0 || rows == 0 {
			return nil
		}
		return sendJSON(ctx, conn, terminalMessage{Type: "resize", Cols: cols, Rows: rows})
	}
	err := tell() // it may have changed since the start, or is another one
	for err == nil {
		select {
		case <-ctx.Done():
			return
		case <-resized:
			err = tell()
		case <-r.keys.ready:
			for data := r.keys.take(typedChunk); len(data) > 0 && err == nil; data = r.keys.take(typedChunk) {
				err = sendJSON(ctx, conn, terminalMessage{Type: "input", Data: base64.StdEncoding.EncodeToString(data)})
			}
		case <-r.keys.detached:
			_ = conn.CloseNow() // ends follow, which sees why
			return
		}
	}
}

func sendJSON(ctx context.Context, conn *websocket.Conn, m any) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return conn.Write(ctx, websocket.MessageText, text)
}

// receiveMessage reads the server's next message, of which there must be one now and then.
func receiveMessage(ctx context.Context, conn *websocket.Conn) (serverMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	_, text, err := conn.Read(ctx)
	if err != nil {
		return serverMessage{}, err
	}
	return decodeMessage(text)
}
