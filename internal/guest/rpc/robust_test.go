package rpc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// frameOf is a message of a Connect stream, in JSON.
func frameOf(t *testing.T, message map[string]any) []byte {
	t.Helper()
	text, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return envelope(text)
}

// half sends the beginning of a request whose body is to be longer than what comes of it.
func (g *guest) half(t *testing.T, procedure string, sent []byte) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: guest\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s",
		procedure, len(sent)+1000, sent)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// What a stream of input brought before it broke off is typed, and neither the process nor
// who comes after takes harm.
func TestStreamInputThatBreaksOff(t *testing.T) {
	g := newGuest(t)
	r, err := begin(within(t), g.process, as("", &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "cat"}}))
	if err != nil {
		t.Fatal(err)
	}
	naming := frameOf(t, map[string]any{"start": map[string]any{"process": map[string]any{"pid": r.pid}}})
	data := frameOf(t, map[string]any{"data": map[string]any{"input": map[string]any{"stdin": []byte("whole\n")}}})
	want := ""
	for name, sent := range map[string][]byte{
		"between messages":    append(bytes.Clone(naming), data...),
		"in a message's head": append(append(bytes.Clone(naming), data...), 0, 0, 0),
		"in a message":        append(append(bytes.Clone(naming), data...), data[:len(data)-4]...),
	} {
		for _, leave := range []func(*net.TCPConn) error{(*net.TCPConn).CloseWrite, (*net.TCPConn).Close, func(c *net.TCPConn) error { _ = c.SetLinger(0); return c.Close() }} {
			conn := g.half(t, "/process.Process/StreamInput", sent).(*net.TCPConn)
			want += "whole\n"
			for r.stdout.String() != want {
				if !r.next(t) {
					t.Fatalf("%s: the process ended with %v after %q", name, r.end, &r.stdout)
				}
			}
			if err := leave(conn); err != nil {
				t.Fatal(err)
			}
		}
	}
	input(t, g.process, byPID(r.pid), "after\n")
	if _, err := g.process.CloseStdin(t.Context(), as("", &processpb.CloseStdinRequest{Process: byPID(r.pid)})); err != nil {
		t.Fatal(err)
	}
	if err := r.finish(t); err != nil || r.stdout.String() != want+"after\n" {
		t.Errorf("%v, %q", err, &r.stdout)
	}
}

// A request of which only a part comes starts nothing and keeps nobody waiting.
func TestHalfSentRequests(t *testing.T) {
	g := newGuest(t)
	start := frameOf(t, map[string]any{"process": map[string]any{"cmd": "sleep", "args": []string{"300"}}})
	var open []net.Conn
	for i := range 50 {
		for _, procedure := range []string{"/process.Process/Start", "/process.Process/Connect", "/filesystem.Filesystem/WatchDir"} {
			open = append(open, g.half(t, procedure, start[:i%len(start)]))
		}
	}
	if r := runAll(t, g.jsonProc, as("", sh("echo served"))); r.stdout.String() != "served\n" {
		t.Errorf("beside them a command says %q", &r.stdout)
	}
	for _, conn := range open[:len(open)/2] { // the others are cut by the daemon's end
		_ = conn.Close()
	}
	list, err := g.process.List(t.Context(), as("", &processpb.ListRequest{}))
	if err != nil || len(list.Msg.GetProcesses()) > 0 {
		t.Errorf("half a request started %v, %v", list, err)
	}
}

func TestOddTags(t *testing.T) {
	g := newGuest(t)
	for _, tag := range []string{"", " ", "_system", "a/b?c=d&e#f", "..", "7", "\x00", "\n\r\t", "ü ✓ \U0001f600", `"\`, strings.Repeat("long", 25_000)} {
		req := sh("cat")
		req.Stdin, req.Tag = nil, &tag
		r, err := begin(within(t), g.jsonProc, as("", req))
		if err != nil {
			t.Fatalf("%.20q: %v", tag, err)
		}
		again, err := attach(within(t), g.process, byTag(tag))
		if err != nil {
			t.Fatalf("%.20q: %v", tag, err)
		}
		list, err := g.jsonProc.List(t.Context(), as("", &processpb.ListRequest{}))
		if err != nil || len(list.Msg.GetProcesses()) != 1 || list.Msg.GetProcesses()[0].Tag == nil || list.Msg.GetProcesses()[0].GetTag() != tag {
			t.Errorf("%.20q is listed as %.200v, %v", tag, list, err)
		}
		if _, err := g.jsonProc.SendSignal(t.Context(), as("", &processpb.SendSignalRequest{Process: byTag(tag), Signal: processpb.Signal_SIGNAL_SIGKILL})); err != nil {
			t.Errorf("%.20q: %v", tag, err)
		}
		for _, one := range []*run{r, again} {
			if err := one.finish(t); err != nil || one.end.GetStatus() != "signal: killed" {
				t.Errorf("%.20q: %v, %v", tag, err, one.end)
			}
		}
	}
}

// What the kernel takes is passed on whole, and what it does not take is refused.
func TestLongArgumentsAndEnvironment(t *testing.T) {
	g := newGuest(t)
	const long, tooLong, many = 100_000, 8 << 20, 50_000
	req := sh(`echo $# ${#1} ${#X}`)
	req.Process.Args = append(req.Process.GetArgs(), "sh", strings.Repeat("a", long))
	req.Process.Args = append(req.Process.Args, make([]string, many)...) // empty ones
	req.Process.Envs = map[string]string{"X": strings.Repeat("x", long)}
	if r := runAll(t, g.jsonProc, as("", req)); r.stdout.String() != fmt.Sprintf("%d %d %d\n", many+1, long, long) {
		t.Errorf("%q, %.200q", &r.stdout, &r.stderr)
	}
	for name, change := range map[string]func(*processpb.ProcessConfig){
		"argument":    func(c *processpb.ProcessConfig) { c.Args = append(c.Args, strings.Repeat("a", tooLong)) },
		"environment": func(c *processpb.ProcessConfig) { c.Envs = map[string]string{"X": strings.Repeat("x", tooLong)} },
	} {
		req := sh("true")
		change(req.Process)
		_, err := begin(within(t), g.process, as("", req))
		wantConnect(t, err, connect.CodeInvalidArgument, "too long")
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// Whoever connects in the moment of a process's end hears of it, once and rightly.
func TestConnectWhileTheProcessEnds(t *testing.T) {
	g := newGuest(t)
	const rounds, clients = 30, 4
	for round := range rounds {
		r, err := begin(within(t), g.process, as("", sh(fmt.Sprintf("echo said; exit %d", round))))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				client, replay := g.process, "false"
				if i%2 == 0 {
					client, replay = g.jsonProc, "true"
				}
				again, err := attach(within(t), client, byPID(r.pid), "Wrenn-Replay", replay)
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				err = again.finish(t)
				if said := again.stdout.String(); err != nil || again.end.GetExitCode() != int32(round) || said != "said\n" && (said != "" || replay == "true") {
					t.Errorf("round %d: %v, %v, %q", round, err, again.end, said)
				}
			})
		}
		if err := r.finish(t); err != nil || r.end.GetExitCode() != int32(round) || r.stdout.String() != "said\n" {
			t.Errorf("round %d: %v, %v, %q", round, err, r.end, &r.stdout)
		}
		wg.Wait()
	}
}

// A client that never reads holds up nobody but its own command, and its going away frees
// that one.
func TestClientThatReadsNothing(t *testing.T) {
	wantLoopbackToGoOn(t)
	g := newGuest(t)
	file := t.TempDir() + "/file"
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := frameOf(t, map[string]any{"process": map[string]any{"cmd": "sh", "args": []string{"-c", "head -c 50000000 /dev/zero; echo > " + file}}, "stdin": false})
	if _, err := fmt.Fprintf(conn, "POST /process.Process/Start HTTP/1.1\r\nHost: guest\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command has begun", func() bool {
		list, err := g.process.List(t.Context(), as("", &processpb.ListRequest{}))
		return err == nil && len(list.Msg.GetProcesses()) == 1
	})
	if r := runAll(t, g.process, as("", sh("head -c 5000000 /dev/zero"))); r.stdout.Len() != 5000000 {
		t.Errorf("beside it a command printed %d bytes", r.stdout.Len())
	}
	if content, err := io.ReadAll(io.LimitReader(conn, 10)); err != nil || !strings.HasPrefix(string(content), "HTTP/1.1") {
		t.Errorf("%q, %v", content, err)
	}
	_ = conn.Close()
	eventually(t, "the command came to its end", func() bool {
		list, err := g.process.List(t.Context(), as("", &processpb.ListRequest{}))
		return err == nil && len(list.Msg.GetProcesses()) == 0
	})
}
