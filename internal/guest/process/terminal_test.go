package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// terminal is a script in a terminal of 100 by 30.
func terminal(script string) Spec {
	spec := shell(script)
	spec.Env = append(spec.Env, "TERM=xterm-256color")
	spec.Terminal = &Size{Cols: 100, Rows: 30}
	return spec
}

// screen reads what a terminal prints.
type screen struct {
	sub  *Subscription
	text bytes.Buffer
}

// waitFor reads until the terminal has printed text, and forgets all up to it.
func (s *screen) waitFor(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		if i := bytes.Index(s.text.Bytes(), []byte(text)); i >= 0 {
			s.text.Next(i + len(text))
			return
		}
		ev, err := s.sub.Next(ctx, 0)
		if err != nil || ev.Kind != Terminal {
			t.Fatalf("the terminal shows %q and not %q: %v, %v", &s.text, text, ev, err)
		}
		if len(ev.Data) > terminalBuffer {
			t.Errorf("a frame of %d bytes", len(ev.Data))
		}
		s.text.Write(ev.Data)
		ev.Release()
	}
}

func typeIn(t *testing.T, p *Process, text string) {
	t.Helper()
	if err := p.WriteTerminal(t.Context(), []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestTerminalHasItsSizeAndIsResized(t *testing.T) {
	m := newManager(t)
	p, sub := start(t, m, terminal(`trap 'stty size; tput cols' WINCH; stty size; tput cols; echo ready; while :; do read line && echo "got $line"; done`))
	s := &screen{sub: sub}
	s.waitFor(t, "30 100\r\n100\r\nready\r\n")
	if err := p.Resize(Size{Cols: 77, Rows: 11}); err != nil {
		t.Fatal(err)
	}
	// A shell acts on the signal once its read is over.
	typeIn(t, p, "x\n")
	s.waitFor(t, "11 77\r\n") // and then, it may be, the echo of what was typed
	s.waitFor(t, "77\r\n")
	if err := p.Resize(Size{Cols: 77}); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("no rows: %v", err)
	}
	if err := p.CloseStdin(); !fault.Is(err, fault.Unknown) {
		t.Errorf("closing the stdin of a terminal: %v", err)
	}
	if err := p.WriteStdin(t.Context(), nil); !fault.Is(err, fault.Internal) {
		t.Errorf("writing to the stdin of a terminal: %v", err)
	}
	spec := shell("sleep 60")
	piped, _ := start(t, m, spec)
	if err := piped.Resize(Size{1, 1}); !fault.Is(err, fault.Internal) {
		t.Errorf("resizing pipes: %v", err)
	}
	if err := piped.WriteTerminal(t.Context(), nil); !fault.Is(err, fault.Internal) {
		t.Errorf("typing into pipes: %v", err)
	}
}

func TestTerminalIsControllingAndTheUsers(t *testing.T) {
	m := newManager(t)
	spec := terminal(`tty; echo $(ps -o pid=,pgid=,sid= -p $$); stat -c %u:%a $(tty); echo by name > $(tty); echo by tty > /dev/tty; stty -a | grep -o ' iutf8'; exit 3`)
	spec.User = User{Name: "nobody", UID: 65534, GID: 65534}
	spec.Terminal = &Size{}
	p, sub := start(t, m, spec)
	s := &screen{sub: sub}
	s.waitFor(t, "/dev/pts/")
	s.waitFor(t, fmt.Sprintf("%d %[1]d %[1]d", p.PID()))
	s.waitFor(t, "65534:620\r\nby name\r\nby tty\r\n iutf8\r\n")
	if r := collect(t, sub); r.end != (End{ExitCode: 3, Exited: true, Status: "exit status 3"}) {
		t.Errorf("end %+v", r.end)
	}
}

func TestTypingIntoAShell(t *testing.T) {
	m := newManager(t)
	spec := terminal("")
	spec.Cmd, spec.Args = "/bin/bash", []string{"--norc", "-i"}
	spec.Env = append(spec.Env, "PS1=ready> ")
	p, sub := start(t, m, spec)
	s := &screen{sub: sub}
	s.waitFor(t, "ready> ")
	typeIn(t, p, "echo $((6*7))\n")
	s.waitFor(t, "42\r\n")
	s.waitFor(t, "ready> ")
	typeIn(t, p, "sleep 300\n")
	s.waitFor(t, "sleep 300\r\n")
	// Only once it is another program; bash's own child would lose the signal.
	eventually(t, "sleep is in the foreground", func() bool { return sleepers(t, p.PID())["300"] != 0 })
	typeIn(t, p, "\x03") // ^C ends the job and not the shell
	s.waitFor(t, "ready> ")
	typeIn(t, p, "exit 5\n")
	if r := collect(t, sub); r.end.ExitCode != 5 {
		t.Errorf("end %+v", r.end)
	}
	if err := p.WriteTerminal(t.Context(), []byte("x")); !fault.Is(err, fault.Internal) {
		t.Errorf("typing into what has ended: %v", err)
	}
}

func TestKillingATerminalEndsItsJobs(t *testing.T) {
	for name, sig := range map[string]unix.Signal{"kill": unix.SIGKILL, "limit": 0} {
		t.Run(name, func(t *testing.T) { killTerminal(t, sig) })
	}
}

// killTerminal ends a terminal with jobs by a signal, or without one by its time limit.
func killTerminal(t *testing.T, sig unix.Signal) {
	t.Helper()
	m := newManager(t)
	spec := terminal("")
	spec.Cmd, spec.Args = "/bin/bash", []string{"--norc", "-i"}
	spec.Env = append(spec.Env, "PS1=> ")
	spec.Dir = t.TempDir() // where nohup writes
	if sig == 0 {
		spec.Limit = time.Second
	}
	p, sub := start(t, m, spec)
	s := &screen{sub: sub}
	s.waitFor(t, "> ")
	typeIn(t, p, "sleep 301 & nohup sleep 302 & true | sleep 303\n")
	var jobs map[string]int
	eventually(t, "all jobs run", func() bool {
		jobs = sleepers(t, p.PID())
		return len(jobs) == 3
	})
	if sig != 0 {
		if err := p.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	if r := collect(t, sub); r.end.Status != "signal: killed" || r.end.TimedOut != (sig == 0) {
		t.Errorf("end %+v", r.end)
	}
	eventually(t, "the jobs are gone", func() bool { return !running(jobs["301"]) && !running(jobs["303"]) })
	if !running(jobs["302"]) {
		t.Error("what ignores the hang-up is gone, too")
	}
	eventually(t, "it is gone when killed itself", func() bool {
		return errors.Is(unix.Kill(jobs["302"], unix.SIGKILL), unix.ESRCH)
	})
}

// sleepers returns the pids of the sleeps in a session by how long they sleep.
func sleepers(t *testing.T, session int) map[string]int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for _, entry := range entries {
		var pid int
		if _, err := fmt.Sscan(entry.Name(), &pid); err != nil {
			continue
		}
		cmd, _ := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		args := strings.Split(string(cmd), "\x00")
		if _, of := groupAndSession(pid); of == session && args[0] == "sleep" {
			found[args[1]] = pid
		}
	}
	return found
}

func TestTermReachesTheForegroundJob(t *testing.T) {
	m := newManager(t)
	spec := terminal("")
	spec.Cmd, spec.Args = "/bin/bash", []string{"--norc", "-i"}
	spec.Env = append(spec.Env, "PS1=> ")
	p, sub := start(t, m, spec)
	s := &screen{sub: sub}
	s.waitFor(t, "> ")
	typeIn(t, p, "sleep 304\n")
	eventually(t, "sleep is in the foreground", func() bool { return sleepers(t, p.PID())["304"] != 0 })
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.waitFor(t, "Terminated")
	s.waitFor(t, "> ") // an interactive shell ignores the signal
	typeIn(t, p, "exit\n")
	collect(t, sub)
}

// In gVisor the foreground job is not told: SIGTERM goes to all jobs, and a kill to the
// shell, whose other jobs are hung up.
func TestSignalsWhereTheForegroundIsUnknown(t *testing.T) {
	m := newManager(t)
	spec := terminal("")
	spec.Cmd, spec.Args = "/bin/bash", []string{"--norc", "-i"}
	spec.Env = append(spec.Env, "PS1=> ")
	spec.Dir = t.TempDir() // where nohup writes
	p, sub := start(t, m, spec)
	s := &screen{sub: sub}
	s.waitFor(t, "> ")
	signal := func(sig unix.Signal) {
		t.Helper()
		if err := m.reaper.whileAlive(p.pid, func() error { return signalSession(p.pid, sig, 0, false) }); err != nil {
			t.Fatal(err)
		}
	}
	jobs := func(want int) (found map[string]int) {
		t.Helper()
		eventually(t, "all jobs run", func() bool {
			found = sleepers(t, p.PID())
			return len(found) == want
		})
		return found
	}
	typeIn(t, p, "sleep 311 & nohup sleep 312 & sleep 313\n")
	first := jobs(3)
	signal(unix.SIGTERM)
	for _, sleeper := range first {
		eventually(t, "the job is gone", func() bool { return !running(sleeper) })
	}
	typeIn(t, p, "echo al''ive\n")
	s.waitFor(t, "alive") // an interactive shell ignores the signal
	typeIn(t, p, "sleep 314 & nohup sleep 315 & sleep 316\n")
	second := jobs(3)
	signal(unix.SIGKILL)
	if r := collect(t, sub); r.end.Status != "signal: killed" {
		t.Errorf("end %+v", r.end)
	}
	eventually(t, "the jobs are hung up", func() bool { return !running(second["314"]) && !running(second["316"]) })
	if !running(second["315"]) {
		t.Error("what ignores the hang-up is gone, too")
	}
	eventually(t, "it is gone when killed itself", func() bool {
		return errors.Is(unix.Kill(second["315"], unix.SIGKILL), unix.ESRCH)
	})
}

func TestTerminalThatIsClosedAndOpenedAgain(t *testing.T) {
	m := newManager(t)
	_, sub := start(t, m, terminal(`exec 3<&- 0<&- 1>&- 2>&-; sleep 0.3; exec >/dev/tty; echo again; exit 2`))
	s := &screen{sub: sub}
	s.waitFor(t, "again\r\n")
	if r := collect(t, sub); r.end.ExitCode != 2 {
		t.Errorf("end %+v", r.end)
	}
}

func TestBackgroundJobOutlivesItsTerminal(t *testing.T) {
	m := newManager(t)
	dir := t.TempDir()
	began := time.Now()
	_, sub := start(t, m, terminal("trap '' HUP; (while [ ! -e "+dir+"/stop ]; do echo noise; sleep 0.01; done; echo over; echo alive > "+dir+"/end) & exit 4"))
	if r := collect(t, sub); r.end.ExitCode != 4 || time.Since(began) > patience/2 {
		t.Errorf("end %+v after %v", r.end, time.Since(began))
	}
	if err := os.WriteFile(dir+"/stop", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job came to its end by itself", func() bool {
		_, err := os.Stat(dir + "/end")
		return err == nil
	})
	eventually(t, "its terminal is given back", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.lingering) == 0
	})
}

func TestTerminalsAreGivenBack(t *testing.T) {
	m := newManager(t)
	before := openFiles(t)
	for range 20 {
		_, sub := start(t, m, terminal("stty size"))
		if r := collect(t, sub); r.terminal.String() != "30 100\r\n" {
			t.Errorf("%q", &r.terminal)
		}
		spec := terminal("")
		spec.Cmd = "/etc/hostname"
		if _, _, err := m.Start(t.Context(), spec); err == nil {
			t.Error("a file that is no program was started")
		}
	}
	if after := openFiles(t); after > before+1 {
		t.Errorf("files leak: %d, then %d", before, after)
	}
}
