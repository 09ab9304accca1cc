package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The HTTP server of a test waits for what its clients keep open; both go with it.
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// fakeSession is a process that a test plays: it sends events and sees what is done to
// the process.
type fakeSession struct {
	events chan sandbox.Event
	// stdin is what was written; "" stands for the end of it.
	stdin  chan string
	killed chan struct{}
	closed chan struct{}
	once   sync.Once
	// stuck makes Write block until its context ends.
	stuck bool
}

func newSession() *fakeSession {
	return &fakeSession{
		events: make(chan sandbox.Event, 16), stdin: make(chan string, 64),
		killed: make(chan struct{}), closed: make(chan struct{}),
	}
}

func (*fakeSession) PID() uint32 { return 7 }
func (*fakeSession) Tag() string { return "t" }

func (s *fakeSession) Next() (sandbox.Event, error) {
	select {
	case ev, ok := <-s.events:
		if !ok {
			return sandbox.Event{}, fault.New(fault.AgentError, "the sandbox went away")
		}
		return ev, nil
	case <-s.closed:
		return sandbox.Event{}, io.ErrClosedPipe
	}
}

func (s *fakeSession) Write(ctx context.Context, p []byte) error {
	if s.stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	s.stdin <- string(p)
	return nil
}
func (s *fakeSession) CloseStdin(context.Context) error { s.stdin <- ""; return nil }
func (s *fakeSession) Kill(context.Context) error       { close(s.killed); return nil }
func (s *fakeSession) Close() error                     { s.once.Do(func() { close(s.closed) }); return nil }

// client is a WebSocket client of a test.
type client struct {
	t    *testing.T
	conn *websocket.Conn
	ctx  context.Context
}

func dial(t *testing.T, s *server) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	conn, resp, err := websocket.Dial(ctx, s.URL+"/v1/capsules/sb1/exec/stream", &websocket.DialOptions{
		HTTPHeader: http.Header{"X-Api-Key": {testKey}},
	})
	if err != nil {
		cancel()
		t.Fatal(resp, err)
	}
	t.Cleanup(func() { _ = conn.CloseNow(); cancel() })
	return &client{t, conn, ctx}
}

func (c *client) send(raw string) {
	c.t.Helper()
	if err := c.conn.Write(c.ctx, websocket.MessageText, []byte(raw)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) expect(want string) {
	c.t.Helper()
	kind, raw, err := c.conn.Read(c.ctx)
	if err != nil {
		c.t.Fatalf("instead of %s: %v", want, err)
	}
	var got, wanted any
	if err := errors.Join(json.Unmarshal(raw, &got), json.Unmarshal([]byte(want), &wanted)); err != nil {
		c.t.Fatal(err)
	}
	if diff := cmp.Diff(wanted, got); diff != "" || kind != websocket.MessageText {
		c.t.Fatalf("got %s, want %s", raw, want)
	}
}

func (c *client) expectClose(want websocket.StatusCode) {
	c.t.Helper()
	_, raw, err := c.conn.Read(c.ctx)
	if got := websocket.CloseStatus(err); got != want {
		c.t.Fatalf("closed with %v (%v, %s), want %v", got, err, raw, want)
	}
}

// streams is a server whose sandboxes run and start s.
func streams(t *testing.T, session *fakeSession) (*server, *sandbox.Command) {
	s := serve(t)
	cmd := new(sandbox.Command)
	s.processes.running = func(string) error { return nil }
	s.processes.open = func(c sandbox.Command) (sandbox.Session, error) {
		*cmd = c
		return session, nil
	}
	return s, cmd
}

func TestStream(t *testing.T) {
	p := newSession()
	s, cmd := streams(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"c","args":["a"],"envs":{"A":"1"},"cwd":"/w","user":"u","timeout_sec":3,"tag":"t","stdin":true}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	want := sandbox.Command{Cmd: "c", Args: []string{"a"}, Env: map[string]string{"A": "1"}, Cwd: "/w", User: "u", Timeout: 3 * time.Second, Tag: "t", Stdin: true}
	if diff := cmp.Diff(want, *cmd); diff != "" {
		t.Error(diff)
	}

	p.events <- sandbox.Event{Kind: sandbox.Stdout, Data: []byte("a\xc3")} // the first half of ö
	c.expect(`{"type":"stdout","data":"a"}`)
	p.events <- sandbox.Event{Kind: sandbox.Stderr, Data: []byte("e")} // streams are joined apart
	c.expect(`{"type":"stderr","data":"e"}`)
	p.events <- sandbox.Event{Kind: sandbox.Stdout, Data: []byte("\xb6")}
	c.expect(`{"type":"stdout","data":"ö"}`)
	p.events <- sandbox.Event{Kind: sandbox.Stdout, Data: []byte("\xff\xfe")}
	c.expect(`{"type":"stdout","data":"//4=","encoding":"base64"}`)

	c.send(`{"type":"stdin","data":"in"}`)
	c.send(`{"type":"stdin","data":"AP8=","encoding":"base64"}`)
	c.send(`{"type":"stdin","data":""}`)
	c.send(`{"type":"stdin_close"}`)
	for _, want := range []string{"in", "\x00\xff", ""} {
		if got := <-p.stdin; got != want {
			t.Errorf("stdin got %q, want %q", got, want)
		}
	}
	c.send(`{"type":"jump"}`)
	c.expect(`{"type":"error","code":"invalid_request","data":"there is no message type \"jump\"; there are start, stdin, stdin_close and stop"}`)
	c.send(`{"type":"start","cmd":"x"}`)
	c.expect(`{"type":"error","code":"invalid_state","data":"the command runs already; open another WebSocket for another command"}`)
	c.send(`{"type":"stop"}`)
	wait(t, p.killed, "stop did not kill")

	p.events <- sandbox.Event{Kind: sandbox.Stdout, Data: []byte("z\xc3")}
	c.expect(`{"type":"stdout","data":"z"}`)
	p.events <- sandbox.Event{Kind: sandbox.Exited, Exit: sandbox.Exit{Code: -1, Signal: "SIGKILL", TimedOut: true}}
	c.expect(`{"type":"stdout","data":"ww==","encoding":"base64"}`) // the half that never became whole
	c.expect(`{"type":"exit","exit_code":-1,"signal":"SIGKILL","timed_out":true}`)
	c.expectClose(websocket.StatusNormalClosure)
	wait(t, p.closed, "the session was not closed")
}

func TestStreamExitZeroIsSaid(t *testing.T) {
	p := newSession()
	s, _ := streams(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"true"}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	p.events <- sandbox.Event{Kind: sandbox.Exited}
	c.expect(`{"type":"exit","exit_code":0}`)
	c.expectClose(websocket.StatusNormalClosure)
}

func TestStreamErrors(t *testing.T) {
	p := newSession()
	s, _ := streams(t, p)
	c := dial(t, s)
	c.send(`{"type":"stop"}`)
	c.expect(`{"type":"error","code":"invalid_request","data":"the first message must be a start and not \"stop\""}`)
	c.expectClose(websocket.StatusPolicyViolation)

	open := s.processes.open
	s.processes.open = func(sandbox.Command) (sandbox.Session, error) {
		return nil, fault.New(fault.InvalidRequest, "there is no command \"c\"")
	}
	c = dial(t, s)
	c.send(`{"type":"start","cmd":"c"}`)
	c.expect(`{"type":"error","code":"invalid_request","data":"there is no command \"c\""}`)
	c.expectClose(websocket.StatusNormalClosure)

	s.processes.open = open
	c = dial(t, s)
	c.send(`{"type":"start","cmd":"c"}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	close(p.events)
	c.expect(`{"type":"error","code":"agent_error","data":"the sandbox went away"}`)
	c.expectClose(websocket.StatusNormalClosure)

	// Before the upgrade errors are answers like any other.
	if code, _ := s.do(t, "GET", "/v1/sandboxes/sb1/exec/stream", "").failure(t); code != "invalid_request" {
		t.Error("a request that is no WebSocket:", code)
	}
	s.processes.running = func(string) error { return fault.New(fault.InvalidState, "it is stopped") }
	if code, _ := s.do(t, "GET", "/v1/sandboxes/sb1/exec/stream", "").failure(t); code != "invalid_state" {
		t.Error("a sandbox that is stopped:", code)
	}
}

func TestClientGoneLeavesTheProcess(t *testing.T) {
	p := newSession()
	s, _ := streams(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"c","stdin":true}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	_ = c.conn.CloseNow() // without a word
	wait(t, p.closed, "the session is still followed")
	select {
	case got := <-p.stdin:
		if got != "" {
			t.Errorf("stdin got %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("stdin is still open")
	}
	select {
	case <-p.killed:
		t.Error("the process was killed")
	default:
	}
}

func TestStopReachesAProcessThatDoesNotRead(t *testing.T) {
	p := newSession()
	p.stuck = true
	s, _ := streams(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"c","stdin":true}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	for range stdinQueue / 2 {
		c.send(`{"type":"stdin","data":"x"}`)
	}
	c.send(`{"type":"stop"}`)
	wait(t, p.killed, "stop waits behind input that nobody reads")
	p.events <- sandbox.Event{Kind: sandbox.Exited, Exit: sandbox.Exit{Code: -1, Signal: "SIGKILL"}}
	c.expect(`{"type":"exit","exit_code":-1,"signal":"SIGKILL"}`)
	c.expectClose(websocket.StatusNormalClosure)
}

// TestKeepAlive has a client that is connected and dead: its pings go unanswered because
// it does not read.
func TestKeepAlive(t *testing.T) {
	p := newSession()
	procs := &fakeProcesses{
		running: func(string) error { return nil },
		open:    func(sandbox.Command) (sandbox.Session, error) { return p, nil },
	}
	base := serve(t)
	stream := execStream{processes: procs, log: slog.New(slog.DiscardHandler), pingInterval: 50 * time.Millisecond}
	base.Config.Handler = failer{slog.New(slog.DiscardHandler)}.handler(stream.serve)
	c := dial(t, base)
	c.send(`{"type":"start","cmd":"c"}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	wait(t, p.closed, "a dead client is still followed")
}

func TestMessageTooLarge(t *testing.T) {
	p := newSession()
	s, _ := streams(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"c","stdin":true}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	c.send(`{"type":"stdin","data":"` + strings.Repeat("x", maxMessage) + `"}`)
	c.expectClose(websocket.StatusMessageTooBig)
}
