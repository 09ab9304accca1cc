package guestclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startEnvd runs the real daemon on this host and returns a client of it.
func startEnvd(t *testing.T) *Client {
	t.Helper()
	c := New(testenv.StartEnvd(t), testenv.EnvdToken)
	t.Cleanup(c.Close)
	return c
}

// run runs a command and returns its output and end.
func (c *Client) run(t *testing.T, cmd Command) (stdout, stderr string, end Ended, err error) {
	t.Helper()
	var out, errOut strings.Builder
	err = c.Start(t.Context(), cmd, func(e Event) error {
		switch e := e.(type) {
		case Output:
			if e.From == Stderr {
				errOut.Write(e.Data)
			} else {
				out.Write(e.Data)
			}
		case Ended:
			end = e
		}
		return nil
	})
	return out.String(), errOut.String(), end, err
}

func shell(script string) Command { return Command{Cmd: "/bin/bash", Args: []string{"-c", script}} }

func TestCommands(t *testing.T) {
	c := startEnvd(t)
	for name, test := range map[string]struct {
		cmd            Command
		stdout, stderr string
		end            Ended
	}{
		"both streams and a code": {shell("echo o; echo e >&2; exit 3"), "o\n", "e\n", Ended{ExitCode: 3}},
		"sandbox environment":     {shell("echo $SHAPE"), "round\n", "", Ended{}},
		"own environment":         {Command{Cmd: "/bin/bash", Args: []string{"-c", "echo $A"}, Env: map[string]string{"A": "b"}}, "b\n", "", Ended{}},
		"directory":               {Command{Cmd: "pwd", Cwd: "/usr"}, "/usr\n", "", Ended{}},
		"user":                    {Command{Cmd: "id", Args: []string{"-un"}, User: "nobody", Cwd: "/"}, "nobody\n", "", Ended{}},
		"signal":                  {shell("kill -TERM $$"), "", "", Ended{ExitCode: -1, Signal: "SIGTERM"}},
		"timeout":                 {Command{Cmd: "/bin/bash", Args: []string{"-c", "echo early; exec sleep 60"}, Timeout: 300 * time.Millisecond}, "early\n", "", Ended{ExitCode: -1, Signal: "SIGKILL", TimedOut: true}},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, end, err := c.run(t, test.cmd)
			if err != nil || stdout != test.stdout || stderr != test.stderr || end != test.end {
				t.Errorf("%q, %q, %+v, %v", stdout, stderr, end, err)
			}
		})
	}
}

func TestWhatCannotRunIsTheCallersMistake(t *testing.T) {
	c := startEnvd(t)
	for name, cmd := range map[string]Command{
		"no such program":   {Cmd: "no-such-program"},
		"no such directory": {Cmd: "true", Cwd: "/no/such/directory"},
		"no such user":      {Cmd: "true", User: "no-such-user"},
	} {
		_, _, _, err := c.run(t, cmd)
		if !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), "no") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheGuestTellsWhoIsWaitedFor(t *testing.T) {
	c := startEnvd(t)
	for name, tc := range map[string]struct {
		cmd        Command
		background bool
	}{
		"foreground": {Command{Cmd: "sleep", Args: []string{"100"}}, false},
		"background": {Command{Cmd: "sleep", Args: []string{"100"}, Background: true}, true},
		"terminal":   {Command{Cmd: "sleep", Args: []string{"100"}, Terminal: &TerminalSize{Cols: 80, Rows: 24}}, true},
	} {
		err := c.Start(t.Context(), tc.cmd, func(e Event) error {
			started, ok := e.(Started)
			if !ok {
				return nil
			}
			if list, err := c.Processes(t.Context()); err != nil || len(list) != 1 || list[0].Background != tc.background {
				t.Errorf("%s: listed as %+v, %v", name, list, err)
			}
			return c.Signal(t.Context(), Selector{PID: started.PID}, true)
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInputReachesTheProcess(t *testing.T) {
	c := startEnvd(t)
	var out strings.Builder
	cmd := Command{Cmd: "cat", Stdin: true, Tag: "reader"}
	err := c.Start(t.Context(), cmd, func(e Event) error {
		switch e := e.(type) {
		case Started:
			if list, err := c.Processes(t.Context()); err != nil || len(list) != 1 || list[0].Tag != "reader" || list[0].PID != e.PID {
				t.Errorf("processes: %+v, %v", list, err)
			}
			if err := c.SendInput(t.Context(), Selector{PID: e.PID}, []byte("one\n")); err != nil {
				t.Error(err)
			}
			return c.CloseStdin(t.Context(), Selector{Tag: "reader"})
		case Output:
			out.Write(e.Data)
		}
		return nil
	})
	if err != nil || out.String() != "one\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := c.Signal(t.Context(), Selector{PID: 1 << 30}, true); !fault.Is(err, fault.NotFound) {
		t.Errorf("signal to nobody: %v", err)
	}
}

func TestFiles(t *testing.T) {
	c := startEnvd(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "file")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, size := range []int64{int64(len(content)), -1} {
		if err := c.WriteFile(t.Context(), path, "", bytes.NewReader(content), size); err != nil {
			t.Fatal(err)
		}
		body, length, err := c.ReadFile(t.Context(), path, "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil || length != int64(len(content)) || !bytes.Equal(got, content) {
			t.Errorf("read %d bytes of %d: %v", len(got), length, err)
		}
	}
	if err := c.WriteFile(t.Context(), path, "", bytes.NewReader(nil), 0); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	if e, err := c.Stat(t.Context(), path, ""); err != nil || e.Size != 0 || e.Type != FileRegular || e.Owner != "root" {
		t.Errorf("stat: %+v, %v", e, err)
	}
	if err := c.WriteFile(t.Context(), path, "", io.MultiReader(strings.NewReader("half"), failing{}), -1); err == nil {
		t.Error("a body that fails half-way was taken as a whole")
	}
	if e, err := c.Stat(t.Context(), path, ""); err != nil || e.Size != 0 {
		t.Errorf("half a file replaced the whole one: %+v, %v", e, err)
	}
	if _, _, err := c.ReadFile(t.Context(), filepath.Join(dir, "none"), ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("read of nothing: %v", err)
	}
	if _, err := c.MakeDir(t.Context(), filepath.Join(dir, "new"), ""); !fault.Is(err, fault.Conflict) {
		t.Errorf("mkdir of what is there: %v", err)
	}
	if e, err := c.Move(t.Context(), path, filepath.Join(dir, "moved"), ""); err != nil || e.Name != "moved" {
		t.Errorf("move: %+v, %v", e, err)
	}
	if list, err := c.List(t.Context(), dir, "", 1); err != nil || len(list) != 2 {
		t.Errorf("list: %+v, %v", list, err)
	}
	for name, target := range map[string]string{"link": "moved", "nowhere": "none"} {
		link := filepath.Join(dir, name)
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if e, err := c.Stat(t.Context(), link, ""); err != nil || e.Type != FileSymlink || !strings.HasPrefix(e.Permissions, "l") {
			t.Errorf("stat of a link to %s: %+v, %v", target, e, err)
		}
	}
	if err := c.Remove(t.Context(), filepath.Join(dir, "moved"), ""); err != nil {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the client went away") }

func TestAWrongTokenIsRefused(t *testing.T) {
	c := startEnvd(t)
	tcp, err := net.ResolveTCPAddr("tcp", strings.TrimPrefix(c.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	stranger := New(tcp, "another token")
	defer stranger.Close()
	if _, err := stranger.Processes(t.Context()); err == nil {
		t.Error("the guest answers without its token")
	}
}

func TestCloseCutsWhatIsUnderWay(t *testing.T) {
	c := startEnvd(t)
	started := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- c.Start(t.Context(), Command{Cmd: "sleep", Args: []string{"30"}, Timeout: time.Minute}, func(e Event) error {
			if _, ok := e.(Started); ok {
				close(started)
			}
			return nil
		})
	}()
	<-started
	c.Close()
	select {
	case err := <-done:
		if !fault.Is(err, fault.AgentError) {
			t.Errorf("the command's stream ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a stream to a guest that is gone goes on")
	}
	if _, err := c.Processes(t.Context()); !fault.Is(err, fault.AgentError) {
		t.Errorf("a request after Close: %v", err)
	}
}

func TestInitMayComeAgain(t *testing.T) {
	c := startEnvd(t)
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, shape := range []string{"square", "oval"} {
		in := Init{AccessToken: testenv.EnvdToken, DefaultUser: "root", EnvVars: map[string]string{"SHAPE": shape}, Timestamp: time.Now()}
		if err := c.Init(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if out, _, _, err := c.run(t, shell("echo $SHAPE")); err != nil || out != shape+"\n" {
			t.Errorf("a command sees %q, %v", out, err)
		}
	}
}

func TestWaitReadyEndsWithItsContext(t *testing.T) {
	c := New(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, "")
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.WaitReady(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a guest that is not there: %v", err)
	}
}

func TestPermissionsAreThoseOfLs(t *testing.T) {
	for given, want := range map[string]string{
		"-rw-r--r--": "-rw-r--r--", "drwxr-xr-x": "drwxr-xr-x", "dtrwxrwxrwx": "drwxrwxrwt", "urwxr-xr-x": "-rwsr-xr-x",
		"ugtrw-r--r--": "-rwSr-Sr-T", "Dcrw-rw-rw-": "crw-rw-rw-", "Drw-rw----": "brw-rw----", "Lrwxrwxrwx": "lrwxrwxrwx",
		"prw-r--r--": "prw-r--r--", "Srwxr-xr-x": "srwxr-xr-x", "": "",
	} {
		if got := lsPermissions(given); got != want {
			t.Errorf("%q became %q, want %q", given, got, want)
		}
	}
}

func TestTerminalOutlivesItsConnection(t *testing.T) {
	c := startEnvd(t)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	cmd := Command{Cmd: "sh", Args: []string{"-c", "stty size; read x; stty size; echo $x"}, Tag: "t", Terminal: &TerminalSize{Cols: 100, Rows: 30}}
	var first strings.Builder
	err := c.Start(ctx, cmd, func(e Event) error {
		if out, ok := e.(Output); ok {
			if out.From != Terminal {
				t.Errorf("output comes from %v", out.From)
			}
			if first.Write(out.Data); strings.Contains(first.String(), "30 100") {
				leave()
			}
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%q, %v", first.String(), err)
	}
	var again strings.Builder
	var end Ended
	err = c.Connect(t.Context(), Selector{Tag: "t"}, Replay{Kept: true}, func(e Event) error {
		switch e := e.(type) {
		case Started:
			if e.PID == 0 || e.ReplayBytes != uint64(first.Len()) {
				t.Errorf("began with %+v, %d bytes were printed", e, first.Len())
			}
			if err := c.ResizeTerminal(t.Context(), Selector{PID: e.PID}, TerminalSize{Cols: 7, Rows: 5}); err != nil {
				return err
			}
			return c.SendTerminalInput(t.Context(), Selector{Tag: "t"}, []byte("typed\r"))
		case Output:
			again.Write(e.Data)
		case Ended:
			end = e
		}
		return nil
	})
	if seen := again.String(); err != nil || end != (Ended{}) || !strings.HasPrefix(seen, first.String()) || !strings.Contains(seen, "5 7\r\ntyped") {
		t.Errorf("saw %q, ended %+v, %v", seen, end, err)
	}
	// Its end is still known, and without a replay nothing else.
	whole := uint64(again.Len())
	err = c.Connect(t.Context(), Selector{Tag: "t"}, Replay{}, func(e Event) error {
		switch e := e.(type) {
		case Started:
			if e.Offset == nil || *e.Offset != (Offset{Stdout: whole}) {
				t.Errorf("after %d bytes it began with %+v", whole, e.Offset)
			}
		case Output:
			t.Errorf("a replay that nobody wanted: %v", e)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	var rest strings.Builder
	from := Offset{Stdout: uint64(first.Len())}
	err = c.Connect(t.Context(), Selector{Tag: "t"}, Replay{From: &from}, func(e Event) error {
		switch e := e.(type) {
		case Started:
			if e.Offset == nil || *e.Offset != from || e.ReplayBytes != whole-from.Stdout {
				t.Errorf("from %d on it began with %+v, %+v", from.Stdout, e, e.Offset)
			}
		case Output:
			rest.Write(e.Data)
		}
		return nil
	})
	if err != nil || first.String()+rest.String() != again.String() {
		t.Errorf("%q and %q are not %q, %v", first.String(), rest.String(), again.String(), err)
	}
	if err := c.Connect(t.Context(), Selector{Tag: "nobody"}, Replay{}, func(Event) error { return nil }); !fault.Is(err, fault.NotFound) {
		t.Errorf("a process that is not there: %v", err)
	}
}
