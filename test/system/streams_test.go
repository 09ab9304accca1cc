package system_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// stream is a client of one of a sandbox's WebSockets.
type stream struct {
	t    testing.TB
	ctx  context.Context
	conn *websocket.Conn
	seen string // output that was not asked for yet
}

// message is any message of the server.
type message struct {
	Type, Data, Encoding, Tag, Code, Signal string
	PID                                     int
	ExitCode                                *int `json:"exit_code"`
	ReplayBytes                             int  `json:"replay_bytes"`
	Fatal                                   bool
}

func (s *sandbox) dial(t testing.TB, path string) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	conn, _, err := websocket.Dial(ctx, s.p.url+s.path(path), &websocket.DialOptions{HTTPHeader: http.Header{"X-Api-Key": {s.p.key}}})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	conn.SetReadLimit(16 * mib)
	t.Cleanup(func() { conn.CloseNow(); cancel() })
	return &stream{t: t, ctx: ctx, conn: conn}
}

// open dials and sends the first message.
func (s *sandbox) open(t testing.TB, path string, first object) (*stream, message) {
	t.Helper()
	c := s.dial(t, path)
	c.send(first)
	m := c.next()
	if m.Type != "started" && m.Type != "start" || m.PID == 0 {
		t.Fatalf("it began with %+v", m)
	}
	return c, m
}

func (c *stream) send(m object) {
	c.t.Helper()
	text, err := json.Marshal(m)
	if err == nil {
		err = c.conn.Write(c.ctx, websocket.MessageText, text)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *stream) types(keys string) {
	c.t.Helper()
	c.send(object{"type": "input", "data": base64.StdEncoding.EncodeToString([]byte(keys))})
}

// next returns the next message that is no ping, with its data decoded.
func (c *stream) next() message {
	c.t.Helper()
	m, err := c.tryNext()
	if err != nil {
		c.t.Fatalf("%v after %q", err, c.seen)
	}
	return m
}

func (c *stream) tryNext() (message, error) {
	for {
		_, text, err := c.conn.Read(c.ctx)
		if err != nil {
			return message{}, err
		}
		var m message
		if err := json.Unmarshal(text, &m); err != nil {
			return message{}, err
		}
		if m.Type == "ping" {
			continue
		}
		if m.Type == "output" || m.Encoding == "base64" {
			data, err := base64.StdEncoding.DecodeString(m.Data)
			if err != nil {
				return message{}, err
			}
			m.Data = string(data)
		}
		return m, nil
	}
}

// sees waits until text is printed and returns all up to it since the last call.
func (c *stream) sees(text string) string {
	c.t.Helper()
	for !strings.Contains(c.seen, text) {
		m := c.next()
		switch m.Type {
		case "output", "stdout", "stderr":
			c.seen += m.Data
		default:
			c.t.Fatalf("%+v instead of %q, after %q", m, text, c.seen)
		}
	}
	before, after, _ := strings.Cut(c.seen, text)
	c.seen = after
	return before + text
}

// ends reads to the end and returns the last message and the status after it.
func (c *stream) ends() (last message, status websocket.StatusCode) {
	c.t.Helper()
	for {
		m, err := c.tryNext()
		if err != nil {
			return last, websocket.CloseStatus(err)
		}
		last = m
	}
}

func (c *stream) exits(code int, signal string) {
	c.t.Helper()
	last, status := c.ends()
	if last.Type != "exit" || last.ExitCode == nil || *last.ExitCode != code || last.Signal != signal || status != websocket.StatusNormalClosure {
		c.t.Errorf("it ended with %+v and %v, want exit code %d %s", last, status, code, signal)
	}
}

func TestTerminal(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	c, began := s.open(t, "/pty", object{"type": "start", "cols": 100, "rows": 30})
	if began.Tag == "" {
		t.Error("the terminal has no tag")
	}
	c.types("stty size; tty -s && echo $TERM-$LANG-$0; echo en''d\r")
	if seen := c.sees("end"); !strings.Contains(seen, "30 100") || !strings.Contains(seen, "xterm-256color-C.UTF-8-") {
		t.Errorf("saw %q", seen)
	}
	c.send(object{"type": "resize", "cols": 132, "rows": 50})
	c.types("until [ \"$(stty size)\" = '50 132' ]; do :; done; echo re''sized\r")
	c.sees("resized")

	// Another client comes by the tag, sees what is on the screen, and both see what follows.
	c.types("KEPT=4; echo on-the-scr''een\r")
	c.sees("on-the-screen")
	other, again := s.open(t, "/pty", object{"type": "connect", "tag": began.Tag})
	if again.PID != began.PID || again.Tag != began.Tag || again.ReplayBytes == 0 {
		t.Errorf("came back to %+v, it was %+v", again, began)
	}
	if replay := other.sees("on-the-screen"); !strings.Contains(replay, "30 100") {
		t.Errorf("the screen is not painted again: %q", replay)
	}
	fresh, _ := s.open(t, "/pty", object{"type": "connect", "tag": began.Tag, "replay": false})
	c.conn.CloseNow() // the terminal goes on without its first client
	other.types("echo $KEPT$KEPT-still\r")
	other.sees("44-still")
	if seen := fresh.sees("44-still"); strings.Contains(seen, "on-the-screen") {
		t.Errorf("without a replay it shows %q", seen)
	}
	if s.processCount(t) != 1 {
		t.Error("the terminal is not in the list of processes")
	}
	other.types("exit 7\r")
	other.exits(7, "")
	fresh.exits(7, "")
}

func TestTerminalIsKilled(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	c, _ := s.open(t, "/pty", object{"type": "start", "cmd": "sh", "args": []string{"-c", "sleep 1000 & echo r''eady; wait"}, "tag": "t"})
	c.sees("ready")
	c.send(object{"type": "kill"})
	c.exits(-1, "SIGKILL")
	eventually(t, settleLimit, func() error {
		if left := s.sh(t, "pgrep -c sleep || true"); left != "0" {
			return fmt.Errorf("%s programs of the terminal still run", left)
		}
		return nil
	})
	// Its end is still known for a while.
	late, _ := s.open(t, "/pty", object{"type": "connect", "tag": "t"})
	late.exits(-1, "SIGKILL")
}

func TestProcessStream(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	s.p.call(t, http.MethodPost, s.path("/exec"), object{
		"cmd": "sh", "args": []string{"-c", "echo early; echo hint >&2; until [ -e /tmp/go ]; do sleep 0.02; done; echo late; exit 5"}, "background": true, "tag": "web",
	})
	eventually(t, settleLimit, func() error {
		c := s.dial(t, "/processes/web/stream?replay=true")
		defer c.conn.CloseNow()
		if m := c.next(); m.ReplayBytes != len("early\nhint\n") {
			return fmt.Errorf("%d bytes are kept", m.ReplayBytes)
		}
		return nil
	})
	replayed, fresh := s.dial(t, "/processes/web/stream?replay=true"), s.dial(t, "/processes/web/stream")
	for _, c := range []*stream{replayed, fresh} {
		if m := c.next(); m.Type != "start" || m.Tag != "web" {
			t.Fatalf("it began with %+v", m)
		}
	}
	replayed.sees("early\n")
	s.sh(t, "touch /tmp/go")
	replayed.sees("late\n")
	if seen := fresh.sees("late\n"); seen != "late\n" {
		t.Errorf("without a replay it shows %q", seen)
	}
	replayed.exits(5, "")
	fresh.exits(5, "")
	c := s.dial(t, "/processes/nobody/stream")
	if last, status := c.ends(); last.Type != "error" || last.Code != "not_found" || !last.Fatal || status != websocket.StatusPolicyViolation {
		t.Errorf("a process that is not there: %+v, %v", last, status)
	}
}

// Input that a process cannot take is told to who sends it, and is the end of nothing.
func TestInputThatIsNotPossible(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	refused := func(what string, c *stream, says string) {
		t.Helper()
		m := c.next()
		for m.Type == "stdout" { // as it comes before, or after
			c.seen += m.Data
			m = c.next()
		}
		if m.Type != "error" || m.Code != "invalid_state" || m.Fatal || !strings.Contains(m.Data, says) {
			t.Errorf("%s: %+v", what, m)
		}
	}
	stdin := object{"type": "stdin", "data": "x\n"}

	mute, _ := s.open(t, "/exec/stream", object{"type": "start", "cmd": "sleep", "args": []string{"1000"}, "tag": "mute"})
	mute.send(stdin)
	refused("stdin to one that has none", mute, "without stdin")
	mute.send(object{"type": "stdin_close"})
	refused("the end of a stdin that is not there", mute, "without stdin")
	beside := s.dial(t, "/processes/mute/stream")
	if m := beside.next(); m.Type != "start" {
		t.Fatalf("it began with %+v", m)
	}
	beside.send(stdin)
	refused("stdin of another client", beside, "without stdin")
	mute.send(object{"type": "stop"})
	mute.exits(-1, "SIGKILL")
	beside.exits(-1, "SIGKILL")

	closed, _ := s.open(t, "/exec/stream", object{
		"type": "start", "cmd": "sh", "args": []string{"-c", "cat; echo re''ad; exec sleep 1000"}, "stdin": true,
	})
	closed.send(stdin)
	closed.send(object{"type": "stdin_close"})
	closed.sees("x\nread\n")
	closed.send(object{"type": "stdin_close"}) // once more is fine
	closed.send(stdin)
	refused("stdin after its end", closed, "is closed")
	closed.send(object{"type": "stop"})
	closed.exits(-1, "SIGKILL")
}

// Who has a terminal open hears at once that its sandbox is gone, or that the server stops.
func TestLastMessages(t *testing.T) {
	p := ownProgram(t, t.TempDir())
	open := func(s *sandbox) *stream {
		c, _ := s.open(t, "/pty", object{"type": "start"})
		return c
	}
	expect := func(what string, c *stream, since time.Time, code, says string) {
		t.Helper()
		const prompt = 2 * time.Second
		last, status := c.ends()
		took := time.Since(since)
		if last.Type != "error" || !last.Fatal || last.Code != code || !strings.Contains(last.Data, says) || status != websocket.StatusGoingAway || took > prompt {
			t.Errorf("%s: after %v: %+v, %v", what, took, last, status)
		}
	}
	c := open(newSandbox(t, p, nil))
	began := time.Now()
	for _, process := range p.seen.find(processes) {
		var pid int
		if _, err := fmt.Sscan(process, &pid); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	expect("ended", c, began, "invalid_state", "ended unexpectedly")

	deleted := newSandbox(t, p, nil)
	c = open(deleted)
	began = time.Now()
	if a := p.call(t, http.MethodDelete, deleted.path(""), nil); a.status != http.StatusNoContent {
		t.Fatalf("delete answered %d", a.status)
	}
	expect("deleted", c, began, "not_found", "was deleted")

	c = open(newSandbox(t, p, nil))
	began = time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- p.stop() }()
	expect("stopping", c, began, "host_unavailable", "stopping")
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if log := p.log(); strings.Contains(log, "lost the host's news") {
		t.Errorf("a clean stop complains:\n%s", log)
	}
}

// A client that does not read makes the process wait, and costs no memory to speak of.
func TestClientThatDoesNotRead(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	const clients, room = 4, 64 * mib
	rss := func() int64 { return statusKiB(t, p.cmd.Process.Pid, "VmRSS:") << 10 }
	before := rss()
	const script = `pad=$(head -c 16383 /dev/zero | tr '\0' x); i=0
		while :; do echo "$pad"; i=$((i+1)); echo $i >/tmp/count.$1; done`
	var streams []*stream
	for n := range clients {
		c, _ := s.open(t, "/exec/stream", object{"type": "start", "cmd": "sh", "args": []string{"-c", script, "sh", fmt.Sprint(n)}})
		streams = append(streams, c)
	}
	last, still := "", 0
	eventually(t, settleLimit, func() error {
		now := s.sh(t, "cat /tmp/count.* 2>/dev/null; ls /tmp | grep -c count || true")
		if now != last {
			last, still = now, 0
			return fmt.Errorf("the processes still print: %q", now)
		}
		const enough = 15
		if still++; still < enough {
			return errors.New("they may have come to a stand")
		}
		return nil
	})
	if after := rss(); after > before+room {
		t.Errorf("the program grew from %d to %d MiB", before/mib, after/mib)
	}
	// Nobody else waits for them.
	if err := s.answers(t.Context(), settleLimit); err != nil {
		t.Error(err)
	}
	// Who reads again goes on where it was.
	for _, c := range streams {
		for total := 0; total < 20*mib; {
			m := c.next()
			if m.Type != "stdout" || strings.Trim(m.Data, "x\n") != "" {
				t.Fatalf("%.100q", m.Data)
			}
			total += len(m.Data)
		}
		c.conn.CloseNow()
	}
}
