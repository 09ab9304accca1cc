package cli

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// sitting is a person at a terminal who has run wrenn.
type sitting struct {
	t        *testing.T
	terminal *os.File // wrenn's side
	person   *os.File // what the person types into and sees
	before   *unix.Termios
	unseen   string // what was read beyond what was waited for
	wrenn    *exec.Cmd
	stderr   bytes.Buffer
}

// sit runs wrenn in a terminal of its own.
func sit(t *testing.T, s *fakeServer, args ...string) *sitting {
	t.Helper()
	p := &sitting{t: t}
	p.terminal, p.person = openTerminal(t)
	p.before = p.modes()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	p.wrenn = exec.CommandContext(ctx, "wrenn", args...)
	p.wrenn.Env = append(os.Environ(), "WRENN_BASE_URL="+s.url(), "WRENN_API_KEY="+fakeKey)
	p.wrenn.Stdin, p.wrenn.Stdout, p.wrenn.Stderr = p.terminal, p.terminal, &p.stderr
	p.wrenn.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.wrenn.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *sitting) modes() *unix.Termios {
	p.t.Helper()
	modes, err := unix.IoctlGetTermios(int(p.terminal.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return modes
}

func (p *sitting) types(keys string) {
	p.t.Helper()
	if _, err := p.person.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

// sees waits until text is shown, and returns all that was shown up to it since the last
// call.
func (p *sitting) sees(text string) string {
	p.t.Helper()
	p.unseen = readOn(p.t, p.person, p.unseen, text)
	before, after, _ := strings.Cut(p.unseen, text)
	p.unseen = after
	return before + text
}

// ends waits for wrenn's end, and sees that the terminal is what it was.
func (p *sitting) ends(code int) {
	p.t.Helper()
	if got := exitCode(p.wrenn.Wait()); got != code {
		p.t.Errorf("exit code %d, want %d; %s", got, code, &p.stderr)
	}
	if diff := cmp.Diff(p.before, p.modes()); diff != "" {
		p.t.Errorf("the terminal is not what it was: %s", diff)
	}
}

// served is a server with one sandbox.
func served(t *testing.T) *fakeServer {
	t.Helper()
	s := newFakeServer(t.TempDir())
	t.Cleanup(s.close)
	cmd := exec.CommandContext(t.Context(), "wrenn", "create")
	cmd.Env = append(os.Environ(), "WRENN_BASE_URL="+s.url(), "WRENN_API_KEY="+fakeKey)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s
}

func TestShell(t *testing.T) {
	s := served(t)
	p := sit(t, s, "shell", fakeID(1), "--tag", "work", "--env", "A=b")
	seen := p.sees("ready> ")
	if !strings.Contains(seen, pushTitle) || !strings.Contains(seen, "\x1b]0;wrenn: "+fakeID(1)+" work\a") {
		t.Errorf("the window's title is not set: %q", seen)
	}
	p.types("stty size; echo $A$((40+2))\r")
	if seen := p.sees("b42"); !strings.Contains(seen, "24 80") {
		t.Errorf("saw %q", seen)
	}
	resize(t, p.person, 132, 50)
	// The news of the new size goes its own way, beside what is typed.
	p.types("until [ \"$(stty size)\" = '50 132' ]; do :; done; echo re''sized\r")
	p.sees("resized")
	p.types("exit 3\r")
	p.sees(popTitle)
	p.ends(3)
	if p.stderr.Len() > 0 {
		t.Errorf("it said %q", &p.stderr)
	}
}

func TestDetachAndReturn(t *testing.T) {
	s := served(t)
	p := sit(t, s, "shell", fakeID(1))
	p.sees("ready> ")
	p.types("KEPT=4; printf '\\033[?1049h\\033[>c\\033[6n'; echo in-an-edit''or\r")
	if seen := p.sees("in-an-editor"); !strings.Contains(seen, "\x1b[6n") {
		t.Errorf("the program's question was not passed on: %q", seen)
	}
	p.types("\x10x\x10") // Ctrl-P alone is for the program
	p.types("\x11")
	if seen := p.sees(popTitle); !strings.Contains(seen, leaveScreen) {
		t.Errorf("the alternate screen stays: %q", seen)
	}
	p.ends(0)
	if got := p.stderr.String(); got != "wrenn: detached; go back with: wrenn shell "+fakeID(1)+" --attach pty-1\n" {
		t.Errorf("it said %q", got)
	}

	again := sit(t, s, "shell", fakeID(1), "--attach", "pty-1")
	if seen := again.sees("in-an-editor"); !strings.Contains(seen, clearScreen) || !strings.Contains(seen, "\x1b[?1049h") {
		t.Errorf("painted over what was there: %q", seen)
	} else if strings.Contains(seen, "\x1b[6n") || strings.Contains(seen, "\x1b[>c") {
		t.Errorf("a question of before is asked again: %q", seen)
	}
	again.types("\x15echo $KEPT$KEPT\r") // Ctrl-U: without what was typed before
	again.sees("44")
	again.types("exit\r")
	again.sees(popTitle)
	again.ends(0)

	late := sit(t, s, "shell", fakeID(1), "--attach", "nobody")
	late.sees(popTitle)
	late.ends(125)
	if got := late.stderr.String(); !strings.Contains(got, "'nobody' not found") || strings.Contains(got, "go back") {
		t.Errorf("it said %q", got)
	}
}

func TestShellConnectsAgain(t *testing.T) {
	s := served(t)
	p := sit(t, s, "shell", fakeID(1), "--tag", "work")
	p.sees("ready> ")
	p.types("KEPT=4\r")
	p.sees("ready> ")
	s.mu.Lock()
	work := s.terminals["work"]
	s.mu.Unlock()
	work.sendAway("the server is stopping")
	p.sees("[wrenn: the server is stopping]\r\n")
	p.sees("[wrenn: connecting again, for 0s of 2m0s; " + detachKeys + " gives up]")
	p.sees("ready> ") // it is painted again
	p.types("echo $KEPT$KEPT\r")
	p.sees("44")
	// When the terminal has gone meanwhile, there is nothing to go back to.
	s.mu.Lock()
	delete(s.terminals, "work")
	s.mu.Unlock()
	work.cut()
	p.sees(popTitle)
	p.ends(125)
	if got := p.stderr.String(); !strings.Contains(got, "'work' not found") || strings.Contains(got, "go back") {
		t.Errorf("it said %q", got)
	}
	work.do(terminalMessage{Type: "kill"})
}

func TestShellOfAPausedSandbox(t *testing.T) {
	s := served(t)
	p := sit(t, s, "shell", fakeID(1), "--tag", "work")
	p.sees("ready> ")
	s.mu.Lock()
	work := s.terminals["work"]
	s.mu.Unlock()
	work.pause()
	p.sees(popTitle)
	p.ends(125)
	if got := p.stderr.String(); !strings.Contains(got, "wrenn resume "+fakeID(1)+" && wrenn shell "+fakeID(1)+" --attach work\n") || !strings.Contains(got, "was paused") {
		t.Errorf("it said %q", got)
	}
	back := sit(t, s, "shell", fakeID(1), "--attach", "work")
	back.sees("ready> ")
	back.types("exit\r")
	back.sees(popTitle)
	back.ends(0)
}

func TestShellLeavesANewerTerminalOfItsTagAlone(t *testing.T) {
	s := served(t)
	p := sit(t, s, "shell", fakeID(1), "--tag", "work")
	p.sees("ready> ")
	s.mu.Lock()
	work := s.terminals["work"]
	s.mu.Unlock()
	newer := sit(t, s, "shell", fakeID(1), "--tag", "work")
	newer.sees("ready> ")
	newer.types("echo sec''ret\r")
	newer.sees("secret")
	work.cut()
	if seen := p.sees(popTitle); strings.Contains(seen, "secret") {
		t.Errorf("it shows what another terminal printed: %q", seen)
	}
	p.ends(125)
	if got := p.stderr.String(); !strings.Contains(got, "the tag work belongs to another terminal now") || strings.Contains(got, "goes on without you") {
		t.Errorf("it said %q", got)
	}
	newer.types("exit\r")
	newer.sees(popTitle)
	newer.ends(0)
	work.do(terminalMessage{Type: "kill"})
}

func TestDetachWhileThereIsNoConnection(t *testing.T) {
	s := served(t)
	p := sit(t, s, "shell", fakeID(1), "--tag", "work")
	p.sees("ready> ")
	s.mu.Lock()
	work := s.terminals["work"]
	s.mu.Unlock()
	if err := s.http.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	work.cut()
	p.sees("no Wrenn server answers")
	p.types("\x10\x11")
	p.sees(popTitle)
	p.ends(0)
	work.do(terminalMessage{Type: "kill"})
}

// Connections that break at once do not make the time for which they are tried any longer.
func TestOutageIsBounded(t *testing.T) {
	began := time.Now()
	var o outage
	now, attempts := began, 0
	for {
		pause, again := o.next(now)
		if !again {
			break
		}
		if attempts++; pause > maxRetry || attempts > 1 && pause < minRetry {
			t.Fatalf("attempt %d after a pause of %v", attempts, pause)
		}
		now = now.Add(pause)
		o.held(steadyAfter - 1)
	}
	if took := now.Sub(began); took > reconnectFor || took < reconnectFor-maxRetry {
		t.Errorf("%d attempts in %v", attempts, took)
	}
	o.held(steadyAfter)
	if pause, again := o.next(now); pause != 0 || !again {
		t.Errorf("after a connection that held, the first attempt is made %v, after %v", again, pause)
	}
}

func TestSignalGivesTheTerminalBack(t *testing.T) {
	s := served(t)
	for _, tt := range []struct {
		args []string
		goes bool // the terminal goes with the program
	}{
		{[]string{"shell", fakeID(1), "--tag", "work"}, false},
		{[]string{"exec", "-it", fakeID(1), "--tag", "once", "--", "sh", "-i"}, true},
	} {
		p := sit(t, s, tt.args...)
		p.sees("ready> ")
		if err := p.wrenn.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		p.sees(popTitle)
		p.ends(128 + int(unix.SIGTERM))
		if got := p.stderr.String(); strings.Contains(got, "go back to it with: wrenn shell "+fakeID(1)+" --attach work") == tt.goes {
			t.Errorf("%v: it said %q", tt.args, got)
		}
	}
	p := sit(t, s, "exec", "-t", fakeID(1), "--tag", "unheard", "--", "sh", "-c", "echo here; exec sleep 100")
	p.sees("here")
	p.types("typed\x1a\x1c\x03") // Ctrl-Z, Ctrl-\ and Ctrl-C, of which only the last one means something
	if seen := p.sees(popTitle); strings.Contains(seen, "typed") {
		t.Errorf("what nobody reads is shown: %q", seen)
	}
	p.ends(128 + int(unix.SIGINT))
	s.mu.Lock()
	work, once, unheard := s.terminals["work"], s.terminals["once"], s.terminals["unheard"]
	s.mu.Unlock()
	for _, gone := range []*fakeTerminal{once, unheard} {
		eventually(t, "the command's terminal to end", func() bool { gone.mu.Lock(); defer gone.mu.Unlock(); return gone.over != nil })
	}
	work.mu.Lock()
	defer work.mu.Unlock()
	if work.over != nil {
		t.Error("the shell's terminal ended with the program")
	}
}

func TestExecInATerminal(t *testing.T) {
	s := served(t)
	p := sit(t, s, "exec", "-it", fakeID(1), "--", "sh", "-c", "tty -s && read x && echo got-$x; exit 4")
	p.types("it\r")
	p.sees("got-it")
	p.sees(popTitle)
	p.ends(4)

	p = sit(t, s, "exec", "-t", fakeID(1), "--json", "--tag", "j", "--", "sh", "-c", "exit 5")
	if seen := p.sees("}"); !strings.Contains(seen, `"exit_code": 5`) || !strings.Contains(seen, `"tag": "j"`) {
		t.Errorf("saw %q", seen)
	}
	p.ends(5)
}

func TestPanicGivesTheTerminalBack(t *testing.T) {
	terminal, person := openTerminal(t)
	before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	local, err := takeTerminal(terminal, terminal, "title", true)
	if err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		local.guard(func() { panic("a defect") })
	}()
	readUntil(t, person, popTitle)
	after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
	local.giveBack() // again does nothing
}

func TestScreenIsFollowed(t *testing.T) {
	for text, alternate := range map[string]bool{
		"plain": false, "\x1b[?1049h": true, "\x1b[?1049hx\x1b[?1049l": false, "\x1b[?1049l\x1b[?47h": true, "\x1b[?1049h\x1bc": false,
	} {
		for step := 1; step <= len(text); step++ {
			var s screen
			for rest := text; rest != ""; {
				n := min(step, len(rest))
				s.follow([]byte(rest[:n]))
				rest = rest[n:]
			}
			if s.alternate != alternate {
				t.Errorf("%q in steps of %d: alternate %v", text, step, s.alternate)
			}
		}
	}
}
