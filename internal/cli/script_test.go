package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// deadline bounds every wait for a condition.
const deadline = 20 * time.Second

// TestMain makes this test binary the wrenn program as well, for the scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"wrenn": func() {
			os.Exit(Execute(context.Background(), NewRoot("v1.2.3"), os.Args[1:]))
		},
	})
}

// Each script has a server of its own. $HOMEDIR is the home directory of its sandboxes.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			homeDir := filepath.Join(env.WorkDir, "sandbox-home")
			home := filepath.Join(env.WorkDir, "home")
			for _, dir := range []string{homeDir, home} {
				if err := os.Mkdir(dir, 0o755); err != nil {
					return err
				}
			}
			s := newFakeServer(homeDir)
			env.Defer(s.close)
			env.Values["server"] = s
			for key, value := range map[string]string{
				"HOME": home, "XDG_CONFIG_HOME": "", "HOMEDIR": homeDir, "SERVER": s.url(), "KEY": fakeKey,
				"WRENN_BASE_URL": s.url(), "WRENN_API_KEY": fakeKey,
				"ONE": fakeID(1), "TWO": fakeID(2), "THREE": fakeID(3), "TZ": "UTC",
				// Under the race detector each wrenn would linger for a second.
				"GORACE": "atexit_sleep_ms=0",
			} {
				env.Setenv(key, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      exits,
			"interrupts": interrupts,
			"sandboxes":  sandboxes,
			"server":     serverDoes,
			"signaled":   signaled,
		},
	})
}

func serverOf(ts *testscript.TestScript) *fakeServer {
	return ts.Value("server").(*fakeServer)
}

// exits CODE PROGRAM ARG…: the program ends with that code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	err := ts.Exec(args[1], args[2:]...)
	if got := exitCode(err); strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d (%v), want %s", got, err, args[0])
	}
}

// waitForText waits until a file contains text.
func waitForText(ctx context.Context, ts *testscript.TestScript, file, text string) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(ts.ReadFile(file), text) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("%s never contained %q: %s", file, text, ts.ReadFile(file))
		}
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	}
	return -1
}

// interrupts WHEN SIGNAL CODE ARG…: wrenn, sent a signal when the server is in a state,
// ends with that code. Its standard error goes to the file interrupted.
func interrupts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: interrupts creating|running SIGNAL CODE ARG…")
	}
	s := serverOf(ts)
	errOut, err := os.Create(ts.MkAbs("interrupted"))
	ts.Check(err)
	defer errOut.Close()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	wrenn, err := exec.LookPath("wrenn")
	ts.Check(err)
	cmd := exec.CommandContext(ctx, wrenn, args[3:]...)
	cmd.Stderr = errOut
	cmd.Env = []string{"WRENN_BASE_URL=" + s.url(), "WRENN_API_KEY=" + fakeKey}
	ready := s.creating
	if args[0] == "running" {
		ready = s.started
	}
	for len(ready) > 0 {
		<-ready // of the commands before
	}
	ts.Check(cmd.Start())
	select {
	case <-ready:
	case <-ctx.Done():
		ts.Fatalf("the server was never %s", args[0])
	}
	ts.Check(cmd.Process.Signal(unix.SignalNum(args[1])))
	if args[0] == "creating" {
		// The answer comes when the person has given up already.
		waitForText(ctx, ts, "interrupted", "waiting for the sandbox")
		s.letCreate()
	}
	if got := exitCode(cmd.Wait()); strconv.Itoa(got) != args[2] {
		ts.Fatalf("exit code %d, want %s; %s", got, args[2], ts.ReadFile("interrupted"))
	}
}

// sandboxes N MADE: the server has N sandboxes now, and made MADE in all.
func sandboxes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sandboxes NOW MADE")
	}
	now, made := serverOf(ts).count()
	if got := fmt.Sprint(now, " ", made); got != strings.Join(args, " ") {
		ts.Fatalf("sandboxes now and made in all: %s, want %s", got, strings.Join(args, " "))
	}
}

// signaled SIGNAL…: processes of the server got these signals.
func signaled(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := strings.Join(s.signals, " "); neg || got != strings.Join(args, " ") {
		ts.Fatalf("processes got %q, want %q", got, strings.Join(args, " "))
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	limit := time.After(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-limit:
			t.Fatalf("waited for %s", what)
		case <-tick.C:
		}
	}
}

// server DOES: from now on the server misbehaves in some way.
func serverDoes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: server holds-creates|refuses-deletes|cuts-streams")
	}
	serverOf(ts).misbehave(args[0])
}

// A second signal must end a program that hangs in its clean-up.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	defer onSignals(cancel)()
	if err := unix.Kill(os.Getpid(), unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(deadline):
		t.Fatal("the signal did not end the context")
	}
	var stopped *signalError
	if err := context.Cause(ctx); !errors.As(err, &stopped) || stopped.sig != syscall.SIGHUP {
		t.Fatalf("cause %v", err)
	}
	if codeOf(stopped) != 128+1 {
		t.Fatalf("exit code %d", codeOf(stopped))
	}
}
