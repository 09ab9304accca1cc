package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
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
	// lost is the error with which the events end when they are closed.
	lost error
	// offset is where the output begins.
	offset *sandbox.Offset
}

func newSession() *fakeSession {
	return &fakeSession{
		events: make(chan sandbox.Event, 16), stdin: make(chan string, 64),
		killed: make(chan struct{}), closed: make(chan struct{}),
		lost: fault.New(fault.AgentError, "the sandbox went away"),
	}
}

func (s *fakeSession) Started() sandbox.Started {
	return sandbox.Started{PID: 7, Tag: "t", Offset: s.offset}
}

func (s *fakeSession) Next() (sandbox.Event, error) {
	select {
	case ev, ok := <-s.events:
		if !ok {
			return sandbox.Event{}, s.lost
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
func (s *fakeSession) Resize(_ context.Context, size sandbox.TerminalSize) error {
	s.stdin <- fmt.Sprintf("size:%dx%d", size.Cols, size.Rows)
	return nil
}
func (s *fakeSession) Kill(context.Context) error { close(s.killed); return nil }
func (s *fakeSession) Close() error               { s.once.Do(func() { close(s.closed) }); return nil }

// expectInput reads what was written to the process, in however many pieces.
func (s *fakeSession) expectInput(t *testing.T, want string) {
	t.Helper()
	got := ""
	for {
		select {
		case piece := <-s.stdin:
			if got += piece; got == want {
				return
			}
			if !strings.HasPrefix(want, got) || piece == "" {
				t.Fatalf("the process got %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the process got only %q, want %q", got, want)
		}
	}
}

// client is a WebSocket client of a test.
type client struct {
	t    *testing.T
	conn *websocket.Conn
	ctx  context.Context
}

func dial(t *testing.T, s *server) *client {
	t.Helper()
	return dialPath(t, s, "/v1/capsules/sb1/exec/stream")
}

func dialPath(t *testing.T, s *server, path string) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	conn, resp, err := websocket.Dial(ctx, s.URL+path, &websocket.DialOptions{
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

// streaming is a server whose sandboxes run and start s.
func streaming(t *testing.T, session *fakeSession) (*server, *sandbox.Command) {
	s := serve(t)
	cmd := new(sandbox.Command)
	s.processes.running = func(string) error { return nil }
	s.processes.open = func(c sandbox.Command) (sandbox.Session, error) {
		*cmd = c
		return session, nil
	}
	s.processes.connect = func(sandbox.Follow) (sandbox.Session, error) { return session, nil }
	return s, cmd
}

func TestStream(t *testing.T) {
	p := newSession()
	s, cmd := streaming(t, p)
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
	p.expectInput(t, "in\x00\xff")
	p.expectInput(t, "") // its end
	c.send(`{"type":"start","cmd":"x"}`)
	c.expect(`{"type":"error","code":"invalid_state","data":"a process is followed already; open another WebSocket for another one","fatal":false}`)
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
	s, _ := streaming(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"true"}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	p.events <- sandbox.Event{Kind: sandbox.Exited}
	c.expect(`{"type":"exit","exit_code":0}`)
	c.expectClose(websocket.StatusNormalClosure)
}

func TestStreamErrors(t *testing.T) {
	p := newSession()
	s, _ := streaming(t, p)
	c := dial(t, s)
	c.send(`{"type":"stop"}`)
	c.expect(`{"type":"error","code":"invalid_request","data":"the first message must be a start and not \"stop\"","fatal":true}`)
	c.expectClose(websocket.StatusPolicyViolation)

	open := s.processes.open
	s.processes.open = func(sandbox.Command) (sandbox.Session, error) {
		return nil, fault.New(fault.InvalidRequest, "there is no command \"c\"")
	}
	c = dial(t, s)
	c.send(`{"type":"start","cmd":"c"}`)
	c.expect(`{"type":"error","code":"invalid_request","data":"there is no command \"c\"","fatal":true}`)
	c.expectClose(websocket.StatusPolicyViolation)

	s.processes.open = open
	c = dial(t, s)
	c.send(`{"type":"start","cmd":"c"}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	close(p.events)
	c.expect(`{"type":"error","code":"agent_error","data":"the sandbox went away","fatal":true}`)
	c.expectClose(websocket.StatusInternalError)

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
	s, _ := streaming(t, p)
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
	s, _ := streaming(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"c","stdin":true}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	// A paste of 2 MB, in pieces as a terminal sends them and in large ones.
	for range 500 {
		c.send(`{"type":"stdin","data":"x"}`)
	}
	large := `{"type":"stdin","data":"` + strings.Repeat("x", 500<<10) + `"}`
	for range 4 {
		c.send(large)
	}
	c.send(`{"type":"stop"}`)
	wait(t, p.killed, "stop waits behind input that nobody reads")
	p.events <- sandbox.Event{Kind: sandbox.Exited, Exit: sandbox.Exit{Code: -1, Signal: "SIGKILL"}}
	c.expect(`{"type":"exit","exit_code":-1,"signal":"SIGKILL"}`)
	c.expectClose(websocket.StatusNormalClosure)
}

// A client that hangs up while the process does not read its stdin is noticed, though
// nobody reads from its connection.
func TestHangingUpIsSeenBehindInput(t *testing.T) {
	p := newSession()
	p.stuck = true
	procs := &fakeProcesses{
		running: func(string) error { return nil },
		open:    func(sandbox.Command) (sandbox.Session, error) { return p, nil },
	}
	stream := newStreams(procs, slog.New(slog.DiscardHandler))
	stream.pace = pace{ping: 20 * time.Millisecond, pong: time.Minute}
	server := httptest.NewUnstartedServer(failer{slog.New(slog.DiscardHandler)}.handler(stream.exec))
	server.Config.ConnContext = ConnContext
	server.Start()
	t.Cleanup(server.Close)
	conn, _, err := websocket.Dial(t.Context(), server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	send := func(m string) {
		t.Helper()
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	send(`{"type":"start","cmd":"c","stdin":true}`)
	large := `{"type":"stdin","data":"` + strings.Repeat("x", 900<<10) + `"}`
	for range inputRoom/(900<<10) + 2 { // the last ones wait in the connection
		send(large)
	}
	_ = conn.CloseNow()
	wait(t, p.closed, "a client that hung up is still followed")
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
	stream := newStreams(procs, slog.New(slog.DiscardHandler))
	stream.pace = pace{ping: 50 * time.Millisecond, pong: 50 * time.Millisecond}
	base.Config.Handler = failer{slog.New(slog.DiscardHandler)}.handler(stream.exec)
	c := dial(t, base)
	c.send(`{"type":"start","cmd":"c"}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	wait(t, p.closed, "a dead client is still followed")
	// One that only did not read finds out why.
	c.expect(`{"type":"error","code":"rate_limited","data":"the output was not read for 50ms, so the stream was ended; the process goes on, connect again","fatal":true}`)
	c.expectClose(websocket.StatusPolicyViolation)
}

func TestMessageTooLarge(t *testing.T) {
	p := newSession()
	s, _ := streaming(t, p)
	c := dial(t, s)
	c.send(`{"type":"start","cmd":"c","stdin":true}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	c.send(`{"type":"stdin","data":"` + strings.Repeat("x", maxMessage) + `"}`)
	c.expectClose(websocket.StatusMessageTooBig)
}
