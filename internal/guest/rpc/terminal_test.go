package rpc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// within returns a context that ends when a test has waited long enough. It has no
// deadline, which would become the limit of a process.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(patience, cancel)
	t.Cleanup(func() {
		timer.Stop()
		cancel()
	})
	return ctx
}

// inTerminal is a command in a terminal of 90 by 20, started as the SDKs do.
func inTerminal(cmd string, args ...string) *processpb.StartRequest {
	return &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: cmd, Args: args, Envs: map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8"}},
		Pty:     &processpb.PTY{Size: &processpb.PTY_Size{Cols: 90, Rows: 20}},
	}
}

// waitFor reads until the terminal has shown text, and forgets all up to it.
func (r *run) waitFor(t *testing.T, text string) {
	t.Helper()
	for {
		if i := bytes.Index(r.pty.Bytes(), []byte(text)); i >= 0 {
			r.pty.Next(i + len(text))
			return
		}
		if !r.next(t) || r.end != nil {
			t.Fatalf("the terminal shows %q and not %q: %v, %v", &r.pty, text, r.end, r.stream.Err())
		}
	}
}

func (r *run) typeIn(t *testing.T, client processconnect.ProcessClient, text string) {
	t.Helper()
	_, err := client.SendInput(t.Context(), as("", &processpb.SendInputRequest{
		Process: byPID(r.pid), Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte(text)}},
	}))
	if err != nil {
		t.Fatal(err)
	}
}

func resize(t *testing.T, client processconnect.ProcessClient, sel *processpb.ProcessSelector, cols, rows uint32) error {
	t.Helper()
	_, err := client.Update(t.Context(), as("", &processpb.UpdateRequest{
		Process: sel, Pty: &processpb.PTY{Size: &processpb.PTY_Size{Cols: cols, Rows: rows}},
	}))
	return err
}

func TestTerminalAsTheSDKsUseIt(t *testing.T) {
	g := newGuest(t)
	for _, client := range []processconnect.ProcessClient{g.process, g.jsonProc} {
		r, err := begin(within(t), client, as("", inTerminal("/bin/bash", "-i", "-l")))
		if err != nil {
			t.Fatal(err)
		}
		r.typeIn(t, client, "PS1='re''ady> '\n")
		r.waitFor(t, "ready> ")
		r.typeIn(t, client, "echo $(tput cols) $(tput lines) $TERM $LANG\n")
		r.waitFor(t, "90 20 xterm-256color C.UTF-8\r\n")
		if err := resize(t, client, byPID(r.pid), 33, 44); err != nil {
			t.Fatal(err)
		}
		r.waitFor(t, "ready> ")
		r.typeIn(t, client, "stty size\n")
		r.waitFor(t, "44 33\r\n")
		wantConnect(t, resize(t, client, byPID(r.pid), 0, 7), connect.CodeInvalidArgument, "a column and a row")
		wantConnect(t, resize(t, client, byPID(r.pid), 1<<20, 7), connect.CodeInvalidArgument, "too large")
		wantConnect(t, resize(t, client, byPID(1), 80, 24), connect.CodeNotFound, "not found")
		if _, err := client.Update(t.Context(), as("", &processpb.UpdateRequest{Process: byPID(r.pid)})); err != nil {
			t.Errorf("an update of nothing: %v", err)
		}
		_, err = client.CloseStdin(t.Context(), as("", &processpb.CloseStdinRequest{Process: byPID(r.pid)}))
		wantConnect(t, err, connect.CodeUnknown, "cannot be closed")
		_, err = client.SendInput(t.Context(), as("", &processpb.SendInputRequest{
			Process: byPID(r.pid), Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte("x")}},
		}))
		wantConnect(t, err, connect.CodeInternal, "has a terminal")
		r.typeIn(t, client, "exit\n")
		if err := r.finish(t); err != nil || r.end.GetExitCode() != 0 || !r.end.GetExited() || r.stdout.Len()+r.stderr.Len() > 0 {
			t.Errorf("%v, %v, %q, %q", err, r.end, &r.stdout, &r.stderr)
		}
	}
}

func TestTerminalWithoutACommandIsALoginShell(t *testing.T) {
	g := newGuest(t)
	// With a home of its own, in which no profile says anything.
	req := &processpb.StartRequest{Process: &processpb.ProcessConfig{Envs: map[string]string{"HOME": t.TempDir()}}, Pty: &processpb.PTY{}}
	r, err := begin(within(t), g.process, as("root", req))
	if err != nil {
		t.Fatal(err)
	}
	r.typeIn(t, g.process, "shopt -q login_shell && echo in $TERM $(stty size); exit 0\n")
	r.waitFor(t, "in xterm-256color 24 80\r\n")
	if err := r.finish(t); err != nil || r.end.GetExitCode() != 0 {
		t.Errorf("%v, %v", err, r.end)
	}
}

// TestPagerSurvivesReconnect leaves a program that fills the screen, and comes back to it.
func TestPagerSurvivesReconnect(t *testing.T) {
	if _, err := os.Stat("/usr/bin/less"); err != nil {
		t.Fatal("less is not installed; scripts/setup installs it")
	}
	g := newGuest(t)
	var text strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&text, "line %d\n", i)
	}
	file := t.TempDir() + "/text"
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	tag := "pager"
	req := inTerminal("less", file)
	req.Tag = &tag
	ctx, cancel := context.WithCancel(within(t))
	r, err := begin(ctx, g.process, as("", req))
	if err != nil {
		t.Fatal(err)
	}
	r.waitFor(t, "\x1b[?1049h") // the alternate screen
	r.waitFor(t, "line 18")
	cancel()
	_ = r.stream.Close()

	// What it shows meanwhile is more than is kept.
	for range 60 {
		r.typeIn(t, g.jsonProc, strings.Repeat("G", 50)+strings.Repeat("g", 50))
	}
	r.typeIn(t, g.jsonProc, "/line 4321\n")
	again, err := attach(within(t), g.jsonProc, byTag(tag), "Wrenn-Replay", "true")
	if err != nil {
		t.Fatal(err)
	}
	again.waitFor(t, "\x1b[?1049h")
	again.waitFor(t, "4321")
	plain, err := attach(within(t), g.process, byTag(tag))
	if err != nil {
		t.Fatal(err)
	}
	again.typeIn(t, g.process, "?line 2222\n")
	again.waitFor(t, "line 2222")
	plain.waitFor(t, "line 2222")
	again.typeIn(t, g.process, "q")
	for _, r := range []*run{again, plain} {
		r.waitFor(t, "\x1b[?1049l")
		if err := r.finish(t); err != nil || r.end.GetExitCode() != 0 {
			t.Errorf("%v, %v", err, r.end)
		}
	}
}

func TestTimeLimitOfATerminal(t *testing.T) {
	g := newGuest(t)
	req := as("", inTerminal("/bin/bash", "--norc", "-i"))
	req.Header().Set("Connect-Timeout-Ms", "300")
	r, err := begin(within(t), g.process, req)
	if err != nil {
		t.Fatal(err)
	}
	r.typeIn(t, g.process, "sleep 300\n")
	wantConnect(t, r.finish(t), connect.CodeDeadlineExceeded, "within 300 ms")
}

func TestKillingATerminal(t *testing.T) {
	g := newGuest(t)
	r, err := begin(within(t), g.process, as("", inTerminal("/bin/bash", "--norc", "-i")))
	if err != nil {
		t.Fatal(err)
	}
	r.typeIn(t, g.process, "sleep 300; echo never\n")
	r.waitFor(t, "sleep 300")
	_, err = g.process.SendSignal(t.Context(), as("", &processpb.SendSignalRequest{Process: byPID(r.pid), Signal: processpb.Signal_SIGNAL_SIGKILL}))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.finish(t); err != nil || r.end.GetExitCode() != -1 || r.end.GetStatus() != "signal: killed" {
		t.Errorf("%v, %v", err, r.end)
	}
}
