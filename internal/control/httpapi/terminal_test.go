package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	ptyPath     = "/v1/sandboxes/sb1/pty"
	processPath = "/v1/sandboxes/sb1/processes/web/stream"
)

func TestTerminal(t *testing.T) {
	p := newSession()
	s, cmd := streaming(t, p)
	c := dialPath(t, s, ptyPath)
	c.send(`{"type":"start","cmd":"sh","args":["-i"],"cols":100,"rows":40,"envs":{"A":"1"},"cwd":"/w","user":"u","tag":"t"}`)
	c.expect(`{"type":"started","tag":"t","pid":7}`)
	want := sandbox.Command{
		Cmd: "sh", Args: []string{"-i"}, Env: map[string]string{"A": "1"}, Cwd: "/w", User: "u", Tag: "t",
		Terminal: &sandbox.TerminalSize{Cols: 100, Rows: 40},
	}
	if diff := cmp.Diff(want, *cmd); diff != "" {
		t.Error(diff)
	}
	p.events <- sandbox.Event{Kind: sandbox.Terminal, Data: []byte("\x1b[2Jh\xc3")} // also half a character goes at once
	c.expect(`{"type":"output","data":"G1sySmjD"}`)
	c.send(`{"type":"input","data":"bHMN"}`)
	p.expectInput(t, "ls\r")
	c.send(`{"type":"resize","cols":132,"rows":50}`)
	p.expectInput(t, "size:132x50")
	for _, bad := range []string{`0,"rows":0`, `0,"rows":1`, `1,"rows":65536`, `1,"rows":-1`} {
		c.send(`{"type":"resize","cols":` + bad + `}`)
		c.expect(`{"type":"error","code":"invalid_request","data":"fields \"cols\" and \"rows\" must be 1 to 65535","fatal":false}`)
	}
	c.send(`{"type":"resize","cols":9}`)
	c.expect(`{"type":"error","code":"invalid_request","data":"a resize needs both \"cols\" and \"rows\"","fatal":false}`)
	c.send(`{"type":"start"}`)
	c.expect(`{"type":"error","code":"invalid_state","data":"a process is followed already; open another WebSocket for another one","fatal":false}`)
	c.send(`{"type":"kill"}`)
	wait(t, p.killed, "kill did not kill")
	p.events <- sandbox.Event{Kind: sandbox.Exited, Exit: sandbox.Exit{Code: -1, Signal: "SIGKILL"}}
	c.expect(`{"type":"exit","exit_code":-1,"signal":"SIGKILL"}`)
	c.expectClose(websocket.StatusNormalClosure)
}

func TestTerminalIsFoundAgain(t *testing.T) {
	for start, want := range map[string]sandbox.Follow{
		`{"type":"connect","tag":"t"}`:                {Process: sandbox.Selector{Tag: "t"}, Terminal: true, Replay: true},
		`{"type":"connect","tag":"t","replay":false}`: {Process: sandbox.Selector{Tag: "t"}, Terminal: true},
	} {
		p := newSession()
		s, _ := streaming(t, p)
		var asked sandbox.Follow
		s.processes.connect = func(f sandbox.Follow) (sandbox.Session, error) { asked = f; return p, nil }
		c := dialPath(t, s, ptyPath)
		c.send(start)
		c.expect(`{"type":"started","tag":"t","pid":7}`)
		if asked != want {
			t.Errorf("%s asked for %+v", start, asked)
		}
		// Going away leaves the terminal alone, and its input open.
		_ = c.conn.CloseNow()
		wait(t, p.closed, "the session is still followed")
		select {
		case got := <-p.stdin:
			t.Errorf("the terminal got %q", got)
		case <-p.killed:
			t.Error("the terminal was killed")
		default:
		}
	}
}

func TestProcessStream(t *testing.T) {
	web := sandbox.Selector{Tag: "web"}
	for query, want := range map[string]sandbox.Follow{
		"":                                  {Process: web},
		"?replay=true":                      {Process: web, Replay: true},
		"?replay=0":                         {Process: web},
		"?stdout_from=0":                    {Process: web, From: &sandbox.Offset{}},
		"?stderr_from=7&replay=1":           {Process: web, Replay: true, From: &sandbox.Offset{Stderr: 7}},
		"?stdout_from=4096&stderr_from=007": {Process: web, From: &sandbox.Offset{Stdout: 4096, Stderr: 7}},
	} {
		p := newSession()
		s, _ := streaming(t, p)
		var asked sandbox.Follow
		s.processes.connect = func(f sandbox.Follow) (sandbox.Session, error) { asked = f; return p, nil }
		start := `{"type":"start","tag":"t","pid":7}`
		if p.offset = want.From; want.From != nil {
			start = fmt.Sprintf(`{"type":"start","tag":"t","pid":7,"offset":{"stdout":%d,"stderr":%d}}`, want.From.Stdout, want.From.Stderr)
		}
		c := dialPath(t, s, processPath+query)
		c.expect(start)
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Errorf("%q asked for something else: %s", query, diff)
		}
		p.events <- sandbox.Event{Kind: sandbox.Stdout, Data: []byte("o")}
		c.expect(`{"type":"stdout","data":"o"}`)
		c.send(`{"type":"stdin","data":"in"}`)
		p.expectInput(t, "in")
		p.events <- sandbox.Event{Kind: sandbox.Exited, Exit: sandbox.Exit{Code: 3}}
		c.expect(`{"type":"exit","exit_code":3}`)
		c.expectClose(websocket.StatusNormalClosure)
	}
	s, _ := streaming(t, newSession())
	for query, says := range map[string]string{
		"?replay=perhaps": "replay", "?stdout_from=-1": "stdout_from", "?stderr_from=1e9": "stderr_from", "?stdout_from=9223372036854775808": "stdout_from",
	} {
		if code, message := s.do(t, "GET", processPath+query, "").failure(t); code != "invalid_request" || !strings.Contains(message, says) {
			t.Error(query, code, message)
		}
	}
	s.processes.connect = func(sandbox.Follow) (sandbox.Session, error) {
		return nil, fault.New(fault.NotFound, "process with tag 'web' not found")
	}
	c := dialPath(t, s, processPath)
	c.expect(`{"type":"error","code":"not_found","data":"process with tag 'web' not found","fatal":true}`)
	c.expectClose(websocket.StatusPolicyViolation)
}

// What a client says wrongly ends its WebSocket with words, not the process.
func TestBadMessagesEndTheWebSocket(t *testing.T) {
	for name, tt := range map[string]struct {
		path, start, bad string
		kind             websocket.MessageType
		status           websocket.StatusCode
		says             string
	}{
		"terminal, type":   {ptyPath, `{"type":"start"}`, `{"type":"jump"}`, websocket.MessageText, websocket.StatusPolicyViolation, `no message type "jump"`},
		"terminal, JSON":   {ptyPath, `{"type":"start"}`, `{`, websocket.MessageText, websocket.StatusPolicyViolation, "not a JSON object"},
		"terminal, base64": {ptyPath, `{"type":"start"}`, `{"type":"input","data":"%"}`, websocket.MessageText, websocket.StatusPolicyViolation, "not base64"},
		"terminal, binary": {ptyPath, `{"type":"start"}`, "\x00", websocket.MessageBinary, websocket.StatusUnsupportedData, "binary"},
		"terminal, first":  {ptyPath, "", `{"type":"input","data":""}`, websocket.MessageText, websocket.StatusPolicyViolation, "must be a start"},
		"terminal, no tag": {ptyPath, "", `{"type":"connect"}`, websocket.MessageText, websocket.StatusPolicyViolation, `"tag"`},
		"command, field":   {"/v1/sandboxes/sb1/exec/stream", `{"type":"start","cmd":"c"}`, `{"type":"stop","x":1}`, websocket.MessageText, websocket.StatusPolicyViolation, `no field "x"`},
		"command, binary":  {"/v1/sandboxes/sb1/exec/stream", "", "\x00", websocket.MessageBinary, websocket.StatusUnsupportedData, "binary"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newSession()
			s, _ := streaming(t, p)
			c := dialPath(t, s, tt.path)
			if tt.start != "" {
				c.send(tt.start)
				if _, _, err := c.conn.Read(c.ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.conn.Write(c.ctx, tt.kind, []byte(tt.bad)); err != nil {
				t.Fatal(err)
			}
			_, raw, err := c.conn.Read(c.ctx)
			var m struct {
				Type, Data, Code string
				Fatal            bool
			}
			if err != nil || json.Unmarshal(raw, &m) != nil || m.Type != "error" || !m.Fatal || m.Code != "invalid_request" || !strings.Contains(m.Data, tt.says) {
				t.Errorf("%s, %v", raw, err)
			}
			c.expectClose(tt.status)
			select {
			case <-p.killed:
				t.Error("the process was killed")
			default:
			}
		})
	}
}

func TestTheLastMessageSaysWhy(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status websocket.StatusCode
	}{
		{fault.New(fault.NotFound, "sandbox \"sb1\" was deleted"), websocket.StatusGoingAway},
		{fault.New(fault.InvalidState, "sandbox \"sb1\" ended: out of memory"), websocket.StatusGoingAway},
		{fault.Wrap(sandbox.ErrPaused, fault.InvalidState, "sandbox \"sb1\" was paused; resume it"), statusPaused},
		{fault.New(fault.RateLimited, "the output was not read"), websocket.StatusPolicyViolation},
		{fault.New(fault.Internal, "a defect"), websocket.StatusInternalError},
	} {
		for path, start := range map[string]string{ptyPath: `{"type":"start"}`, processPath: ""} {
			p := newSession()
			p.lost = tt.err
			s, _ := streaming(t, p)
			c := dialPath(t, s, path)
			if start != "" {
				c.send(start)
			}
			if _, _, err := c.conn.Read(c.ctx); err != nil {
				t.Fatal(err)
			}
			p.events <- sandbox.Event{Kind: sandbox.Stdout, Data: []byte("x")}
			if _, _, err := c.conn.Read(c.ctx); err != nil {
				t.Fatal(err)
			}
			close(p.events)
			want, err := json.Marshal(map[string]any{"type": "error", "data": fault.MessageOf(tt.err), "code": fault.CodeOf(tt.err), "fatal": true})
			if err != nil {
				t.Fatal(err)
			}
			c.expect(string(want))
			c.expectClose(tt.status)
		}
	}
}

func TestStoppingServerSaysSo(t *testing.T) {
	p := newSession()
	s, _ := streaming(t, p)
	running := dialPath(t, s, ptyPath)
	running.send(`{"type":"start"}`)
	running.expect(`{"type":"started","tag":"t","pid":7}`)
	silent := dialPath(t, s, ptyPath) // has not said yet what it wants

	closed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		closed <- s.api.Close(ctx)
	}()
	for _, c := range []*client{running, silent} {
		c.expect(`{"type":"error","code":"host_unavailable","data":"the server is stopping","fatal":true}`)
		c.expectClose(websocket.StatusGoingAway)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	conn, resp, err := websocket.Dial(running.ctx, s.URL+ptyPath, &websocket.DialOptions{HTTPHeader: map[string][]string{"X-Api-Key": {testKey}}})
	if err == nil {
		_ = conn.CloseNow()
		t.Fatal("a server that stops takes more clients")
	}
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestTerminalIsPinged(t *testing.T) {
	p := newSession()
	procs := &fakeProcesses{
		running: func(string) error { return nil },
		open:    func(sandbox.Command) (sandbox.Session, error) { return p, nil },
	}
	base := serve(t)
	stream := newStreams(procs, slog.New(slog.DiscardHandler))
	stream.pace.ping = 20 * time.Millisecond
	base.Config.Handler = failer{slog.New(slog.DiscardHandler)}.handler(stream.terminal)
	c := dialPath(t, base, ptyPath)
	c.send(`{"type":"start"}`)
	c.expect(`{"type":"started","tag":"t","pid":7}`)
	for range 3 {
		c.expect(`{"type":"ping"}`)
	}
}

// A client that reads nothing makes the process wait, and costs a bounded amount of
// memory.
func TestOutboxIsBounded(t *testing.T) {
	var o outbox
	o.init(time.Minute)
	piece := bytes.Repeat([]byte("x"), 100<<10)
	var mu sync.Mutex
	taken, put := 0, 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for o.put(item{event: sandbox.Event{Kind: sandbox.Stdout, Data: piece}}) {
			mu.Lock()
			put++
			if ahead := (put - taken) * len(piece); ahead > 2*maxWaitingBytes {
				t.Errorf("%d bytes wait", ahead)
			}
			mu.Unlock()
		}
	}()
	var items []item
	for range 100 {
		items = o.take(items)
		if len(items) == 0 {
			t.Fatal("closed")
		}
		mu.Lock()
		taken += len(items)
		mu.Unlock()
	}
	o.close()
	wait(t, done, "put waits for ever")
	if o.take(nil) != nil {
		t.Error("a closed outbox has items")
	}
}

// 256 events fit, however small; what comes then waits, or is too much.
func TestOutboxHolds256Events(t *testing.T) {
	const room = 256
	var o outbox
	o.init(0) // nobody waits for the client
	for i := range room {
		if !o.put(item{event: sandbox.Event{Kind: sandbox.Stdout, Data: []byte("x")}}) {
			t.Fatalf("there is no room for event %d", i+1)
		}
	}
	if o.put(item{event: sandbox.Event{Kind: sandbox.Stdout, Data: []byte("x")}}) {
		t.Errorf("there is room for more than %d events", room)
	}
}

// Pieces that wait become one message, but never those of different streams.
func TestPiecesAreJoined(t *testing.T) {
	var sent []string
	enc := encoder{dialect: new(commandDialect), send: func(m []byte) error { sent = append(sent, string(m)); return nil }}
	for _, ev := range []sandbox.Event{
		{Kind: sandbox.Stdout, Data: []byte("a")}, {Kind: sandbox.Stdout, Data: []byte("b\xc3")}, {Kind: sandbox.Stdout, Data: []byte("\xb6")},
		{Kind: sandbox.Stderr, Data: []byte("e")}, {Kind: sandbox.Stdout, Data: []byte("c\xe2")},
	} {
		if err := enc.add(ev); err != nil {
			t.Fatal(err)
		}
	}
	if err := enc.flush(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"type":"stdout","data":"abö"}`, `{"type":"stderr","data":"e"}`, `{"type":"stdout","data":"c"}`,
		`{"type":"stdout","data":"4g==","encoding":"base64"}`,
	}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Error(diff)
	}
}

func FuzzDecodeTerminalMessage(f *testing.F) {
	for _, seed := range []string{
		`{"type":"start","cmd":"sh","args":["-c","x"],"cols":80,"rows":24,"envs":{"A":"1"},"cwd":"/","user":"u","tag":"t"}`,
		`{"type":"connect","tag":"t","replay":false}`, `{"type":"input","data":"YQ=="}`,
		`{"type":"resize","cols":1,"rows":65535}`, `{"type":"kill"}`, `{"type":"resize","cols":1e9}`, `{"type":"resize"}`, `{`, `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := decodeTerminalMessage(raw)
		switch {
		case err != nil && !fault.Is(err, fault.InvalidRequest):
			t.Fatalf("not the client's error: %v", err)
		case err == nil && m.kind == typeStart && m.start.Terminal == nil:
			t.Fatal("a terminal without a terminal")
		case err == nil && m.kind == typeConnect && m.connect.Process.Tag == "":
			t.Fatal("a connect to nothing")
		case err == nil && m.refused != nil && !fault.Is(m.refused, fault.InvalidRequest):
			t.Fatalf("not the client's error: %v", m.refused)
		case err == nil && m.refused == nil && m.kind == typeResize && (m.size.Cols == 0 || m.size.Rows == 0):
			t.Fatal("a terminal without room")
		}
	})
}

// FuzzEscape has a decoder read back what was escaped.
func FuzzEscape(f *testing.F) {
	for _, seed := range []string{"plain", "a\"b\\c\n\r\t\x00\x1f\x7f", "ünï→😀\u2028", "</script>"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			return
		}
		var back string
		escaped := append(appendEscaped([]byte{'"'}, []byte(text)), '"')
		if err := json.Unmarshal(escaped, &back); err != nil || back != text {
			t.Fatalf("%q came back from %s as %q: %v", text, escaped, back, err)
		}
	})
}

func BenchmarkOutput(b *testing.B) {
	text := bytes.Repeat([]byte("0123456789abcde\n"), maxPiece/16)
	for name, d := range map[string]dialect{"command": new(commandDialect), "terminal": new(terminalDialect)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if len(d.output(sandbox.Stdout, text)) < base64.StdEncoding.EncodedLen(1) {
					b.Fatal("nothing")
				}
			}
		})
	}
}
