package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// stopGrace is how long the server has to tell the end of a command that was stopped.
	stopGrace = 5 * time.Second
	// stdinChunk is how much stdin is sent in a message, in bytes. A message holds at most
	// 1 MiB, and base64 makes a chunk a third larger.
	stdinChunk = 256 << 10
	// maxMessage bounds a message of the server, in bytes.
	maxMessage = 16 << 20
)

// clientMessage is what a client sends over exec/stream. What its fields mean is in
// api/openapi.yaml.
type clientMessage struct {
	Type       string            `json:"type"`
	Cmd        string            `json:"cmd,omitempty"`
	Args       []string          `json:"args,omitempty"`
	Envs       map[string]string `json:"envs,omitempty"`
	Cwd        string            `json:"cwd,omitempty"`
	User       string            `json:"user,omitempty"`
	TimeoutSec int64             `json:"timeout_sec,omitempty"`
	Tag        string            `json:"tag,omitempty"`
	Stdin      bool              `json:"stdin,omitempty"`
	Data       string            `json:"data,omitempty"`
	Encoding   string            `json:"encoding,omitempty"`
}

// serverMessage is what the server sends over exec/stream and the like.
type serverMessage struct {
	Type     string     `json:"type"`
	Tag      string     `json:"tag"`
	PID      int64      `json:"pid"`
	Data     string     `json:"data"`
	Encoding string     `json:"encoding"`
	Code     fault.Code `json:"code"`
	// Fatal is whether an error is the last message.
	Fatal bool `json:"fatal"`
	// ReplayBytes is how much of the output that follows a start is of before.
	ReplayBytes int64 `json:"replay_bytes"`
	// Offset is where the output that follows a start begins; nil when it is not said.
	Offset *outputOffset `json:"offset"`
	ended
}

// outputOffset is a place in a process's output: how many bytes of each kind came before it.
type outputOffset struct {
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// ended is how a command ended.
type ended struct {
	ExitCode int    `json:"exit_code"`
	Signal   string `json:"signal"`
	TimedOut bool   `json:"timed_out"`
}

// base64Encoding marks data that is not UTF-8.
const base64Encoding = "base64"

// decodeMessage reads a message of the server.
func decodeMessage(text []byte) (serverMessage, error) {
	var m serverMessage
	if err := json.Unmarshal(text, &m); err != nil {
		return serverMessage{}, fault.Wrap(err, fault.AgentError, "the server sent something that is no message")
	}
	return m, nil
}

// bytes returns a message's data.
func (m *serverMessage) bytes() ([]byte, error) {
	if m.Encoding != base64Encoding {
		return []byte(m.Data), nil
	}
	return base64.StdEncoding.DecodeString(m.Data)
}

// execStream is one command over a WebSocket.
type execStream struct {
	conn   *websocket.Conn
	server *server
	id     string                 // of the sandbox
	cut    func()                 // breaks the connection off
	tag    atomic.Pointer[string] // of the command, once it has started
}

// stream runs a command of a sandbox with live streams until it ends. A nil in leaves the
// command without stdin. When ctx ends the command is killed, and what ended ctx is the
// error.
func (s *server) stream(ctx context.Context, id string, start clientMessage, in io.Reader, out, errOut io.Writer) (ended, error) {
	x, err := s.dialExec(ctx, id)
	if err != nil {
		return ended{}, err
	}
	defer x.conn.CloseNow()

	// Reading with ctx would cut the connection the moment it ends, and leave the command
	// running; life goes on until the command is stopped.
	life, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	x.cut = cut
	start.Type, start.Stdin = "start", in != nil
	if err := x.send(life, start); err != nil {
		return ended{}, s.unreachable(err)
	}
	defer context.AfterFunc(ctx, func() { x.stop(life) })()
	if in != nil {
		// A read of standard input cannot be broken off: this goroutine may stay blocked in
		// one until the program ends.
		go x.feed(life, in)
	}

	how, err := x.receive(life, out, errOut)
	if ctx.Err() != nil {
		return ended{}, ctx.Err()
	}
	return how, err
}

func (s *server) dialExec(ctx context.Context, id string) (*execStream, error) {
	conn, err := s.dialStream(ctx, id, "exec/stream")
	if err != nil {
		return nil, err
	}
	return &execStream{conn: conn, server: s, id: id}, nil
}

// dialStream opens one of a sandbox's WebSockets.
func (s *server) dialStream(ctx context.Context, id, path string) (*websocket.Conn, error) {
	header := http.Header{}
	s.authorise(header)
	at := s.at.APIURL + "/v1/sandboxes/" + url.PathEscape(id) + "/" + path
	conn, resp, err := websocket.Dial(ctx, at, &websocket.DialOptions{HTTPClient: s.http, HTTPHeader: header})
	if err != nil {
		if resp != nil && resp.StatusCode >= http.StatusBadRequest {
			return nil, s.refused(resp)
		}
		return nil, s.unreachable(err)
	}
	conn.SetReadLimit(maxMessage)
	return conn, nil
}

func (x *execStream) send(ctx context.Context, m clientMessage) error {
	return sendJSON(ctx, x.conn, m)
}

// stop ends the command, and cuts the connection if no end is told in time. It does not
// block.
func (x *execStream) stop(ctx context.Context) {
	time.AfterFunc(stopGrace, x.cut)
	go func() {
		if x.send(ctx, clientMessage{Type: "stop"}) != nil {
			x.cut()
		}
	}()
	// A server that waits for the command to read its stdin does not hear the WebSocket.
	if tag := x.tag.Load(); tag != nil {
		go func() { _ = x.server.signalProcess(ctx, x.id, *tag, unix.SignalName(unix.SIGKILL)) }() // one of the two is enough
	}
}

// feed sends stdin until its end. Errors of the connection are the receiver's to tell.
func (x *execStream) feed(ctx context.Context, in io.Reader) {
	buf := make([]byte, stdinChunk)
	for {
		n, readErr := in.Read(buf)
		if n > 0 {
			if x.send(ctx, stdinMessage(buf[:n])) != nil {
				return
			}
		}
		if readErr != nil {
			_ = x.send(ctx, clientMessage{Type: "stdin_close"})
			return
		}
	}
}

// stdinMessage carries what people type as text, and all else as base64: a file of
// zeros or of angle brackets is UTF-8 too, and six times as long once JSON has escaped it.
func stdinMessage(data []byte) clientMessage {
	const typed = 4 << 10 // bytes
	if len(data) <= typed && utf8.Valid(data) {
		return clientMessage{Type: "stdin", Data: string(data)}
	}
	return clientMessage{Type: "stdin", Data: base64.StdEncoding.EncodeToString(data), Encoding: base64Encoding}
}

// receive writes the command's output until it has ended.
func (x *execStream) receive(ctx context.Context, out, errOut io.Writer) (ended, error) {
	// An error may be about one message only, such as stdin that came when the command had
	// just ended; then the exit follows. It is the result when nothing follows.
	var failure, unwritable error
	for {
		_, text, err := x.conn.Read(ctx)
		if err != nil {
			return ended{}, cmp.Or(unwritable, failure, x.broken(err))
		}
		m, err := decodeMessage(text)
		if err != nil {
			return ended{}, err
		}
		switch m.Type {
		case "start":
			if m.Tag != "" {
				x.tag.Store(&m.Tag)
			}
		case "stdout":
			err = m.writeTo(out)
		case "stderr":
			err = m.writeTo(errOut)
		case "exit":
			_ = x.conn.Close(websocket.StatusNormalClosure, "") // the command has ended either way
			return m.ended, unwritable
		case "error":
			failure = m.failure()
		}
		if err != nil {
			// Nobody reads the output any more, so nobody wants the command either. Going
			// away before its end would leave it running.
			x.stop(ctx)
			unwritable, out, errOut = err, io.Discard, io.Discard
		}
	}
}

// broken is the error for a connection that ended before the command did.
func (x *execStream) broken(err error) error {
	return fault.Wrap(err, fault.HostUnavailable,
		"the connection broke before the command ended; it may still run, see `wrenn ps %s`", x.id)
}

func (m *serverMessage) writeTo(w io.Writer) error {
	data, err := m.bytes()
	if err != nil {
		return fault.Wrap(err, fault.AgentError, "the server sent output that cannot be decoded")
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("write the command's output: %w", err)
	}
	return nil
}

func (m *serverMessage) failure() error {
	code := m.Code
	if code == "" {
		code = fault.AgentError
	}
	return fault.New(code, "%s", m.Data)
}
