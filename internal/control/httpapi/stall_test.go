package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// printing follows a process that prints until the channel ends is closed, and then exits,
// or until its session is closed.
func printing(t *testing.T, p *fakeSession, pace pace, ends <-chan struct{}) (*client, <-chan int) {
	t.Helper()
	base := serve(t)
	stream := newStreams(&fakeProcesses{
		running: func(string) error { return nil },
		open:    func(sandbox.Command) (sandbox.Session, error) { return p, nil },
	}, slog.New(slog.DiscardHandler))
	stream.pace = pace
	base.Config.Handler = failer{slog.New(slog.DiscardHandler)}.handler(stream.exec)
	c := dial(t, base)
	c.conn.SetReadLimit(-1)
	c.send(`{"type":"start","cmd":"c"}`)
	c.expect(`{"type":"start","pid":7,"tag":"t"}`)
	printed := make(chan int, 1)
	piece := bytes.Repeat([]byte("x"), 128<<10)
	go func() {
		total := 0
		defer func() { printed <- total }()
		for {
			select {
			case p.events <- sandbox.Event{Kind: sandbox.Stdout, Data: piece}:
				total += len(piece)
			case <-ends:
				p.events <- sandbox.Event{Kind: sandbox.Exited}
				return
			case <-p.closed:
				return
			}
		}
	}()
	return c, printed
}

// rest reads all that is left, and returns how many bytes of output it was, the last
// message, and the status of the end.
func (c *client) rest() (output int, last string, status websocket.StatusCode) {
	c.t.Helper()
	for {
		_, raw, err := c.conn.Read(c.ctx)
		if err != nil {
			return output, last, websocket.CloseStatus(err)
		}
		var m struct{ Type, Data string }
		if err := json.Unmarshal(raw, &m); err != nil {
			c.t.Fatal(err)
		}
		if m.Type == "stdout" {
			output += len(m.Data)
		} else {
			last = string(raw)
		}
	}
}

// A client that reads nothing for a while loses nothing, whoever pings whom meanwhile. It
// takes its time: the library gives a ping 5 s to get past the output.
func TestClientThatReadsNothingForAWhile(t *testing.T) {
	p := newSession()
	ends := make(chan struct{})
	c, printed := printing(t, p, pace{ping: time.Second, pong: time.Minute}, ends)
	const while = 6500 * time.Millisecond
	over := time.After(while)
	ping, cancel := context.WithTimeout(c.ctx, 500*time.Millisecond)
	defer cancel()
	if err := c.conn.Ping(ping); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a ping that nobody reads the answer of: %v", err)
	}
	select {
	case <-over:
	case <-p.closed:
		t.Error("the client was given up")
	}
	close(ends)
	output, last, status := c.rest()
	if want := <-printed; output != want || !strings.Contains(last, `"exit_code":0`) || status != websocket.StatusNormalClosure {
		t.Errorf("%d bytes of %d came, then %s and status %v", output, want, last, status)
	}
}

// One that takes nothing for too long is told so, when it reads again, after what came
// before; and the process is not held up any more.
func TestClientThatReadsNothingForTooLong(t *testing.T) {
	p := newSession()
	c, printed := printing(t, p, pace{ping: time.Second, pong: 200 * time.Millisecond}, nil)
	wait(t, p.closed, "the process waits for ever for its client")
	output, last, status := c.rest()
	if all := <-printed; output == 0 || output > all {
		t.Errorf("%d bytes of %d came", output, all)
	}
	if !strings.Contains(last, `"code":"rate_limited"`) || !strings.Contains(last, `"fatal":true`) || status != websocket.StatusPolicyViolation {
		t.Errorf("the end is %s and status %v", last, status)
	}
}

func TestRoomOfAConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := ConnContext(t.Context(), conn)
	if !hasRoom(t.Context()) || !hasRoom(ctx) {
		t.Error("an empty connection has no room")
	}
	for deadline := time.Now().Add(10 * time.Second); hasRoom(ctx); { // nobody reads
		if err := conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil || time.Now().After(deadline) {
			t.Fatal("a connection never fills", err)
		}
		_, _ = conn.Write(make([]byte, 1<<20))
	}
	_ = conn.Close()
	if !hasRoom(ctx) {
		t.Error("a ping over a closed connection would never fail")
	}
}
