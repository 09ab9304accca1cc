package system_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seat is a person at a terminal who has run wrenn there.
type seat struct {
	t      *testing.T
	person *os.File // what the person types into and sees
	seen   string   // what was shown and not waited for yet
	wrenn  *exec.Cmd
	stderr bytes.Buffer
}

// sit runs a command of the program in a terminal of its own, of 100 columns and 30 rows.
func (p *program) sit(t *testing.T, args ...string) *seat {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &seat{t: t, person: os.NewFile(uintptr(master), "terminal")}
	t.Cleanup(func() { _ = s.person.Close() })
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Col: 100, Row: 30}); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
	t.Cleanup(cancel)
	s.wrenn = exec.CommandContext(ctx, p.bin, args...)
	s.wrenn.Env = append(os.Environ(), "WRENN_BASE_URL="+p.url, "WRENN_API_KEY="+p.key, "HOME="+p.home)
	s.wrenn.Stdin, s.wrenn.Stdout, s.wrenn.Stderr = tty, tty, &s.stderr
	s.wrenn.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.wrenn.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *seat) resize(cols, rows uint16) {
	s.t.Helper()
	raw, err := s.person.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	})
	if err != nil || failed != nil {
		s.t.Fatal(err, failed)
	}
}

func (s *seat) types(keys string) {
	s.t.Helper()
	if _, err := s.person.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// sees waits until text is shown and returns all up to it since the last call.
func (s *seat) sees(text string) string {
	s.t.Helper()
	if err := s.person.SetReadDeadline(time.Now().Add(settleLimit)); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 4<<10)
	for !strings.Contains(s.seen, text) {
		n, err := s.person.Read(buf)
		if s.seen += string(buf[:n]); err != nil {
			s.t.Fatalf("%v instead of %q, after %q; it says %q", err, text, s.seen, &s.stderr)
		}
	}
	before, after, _ := strings.Cut(s.seen, text)
	s.seen = after
	return before + text
}

func (s *seat) ends(code int) {
	s.t.Helper()
	_ = s.wrenn.Wait() // the code says it
	if got := s.wrenn.ProcessState.ExitCode(); got != code {
		s.t.Errorf("code %d, want %d; it says %q", got, code, &s.stderr)
	}
}

// A shell is left, found in the list, gone back to from another terminal, and ended.
func TestShellFromTheCommandLine(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	first := p.sit(t, "shell", s.id, "--tag", "work")
	first.types("KEPT=4; stty size; echo on-the-scr''een\r")
	if seen := first.sees("on-the-screen"); !strings.Contains(seen, "30 100") {
		t.Errorf("saw %q", seen)
	}
	first.resize(132, 50)
	first.types("until [ \"$(stty size)\" = '50 132' ]; do :; done; echo re''sized\r")
	first.sees("resized")
	first.types("\x10\x11") // Ctrl-P Ctrl-Q
	first.ends(0)
	if !strings.Contains(first.stderr.String(), "--attach work") {
		t.Errorf("it says %q", &first.stderr)
	}
	if out, _, code := p.cli(t, nil, "ps", s.id); code != 0 || !strings.Contains(out, "work") {
		t.Errorf("ps: %d, %q", code, out)
	}
	again := p.sit(t, "shell", s.id, "--attach", "work")
	again.sees("on-the-screen")
	again.types("echo $KEPT$KEPT; exit 7\r")
	again.sees("44")
	again.ends(7)

	one := p.sit(t, "exec", "-it", s.id, "--", "sh", "-c", "tty -s && read line && echo \"got $line\"; exit 5")
	one.types("typed\r")
	one.sees("got typed")
	one.ends(5)
}

// Commands in the background from the command line: started, listed, followed to the end,
// and killed.
func TestBackgroundFromTheCommandLine(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	run := func(wantCode int, args ...string) string {
		t.Helper()
		out, errOut, code := p.cli(t, nil, args...)
		if code != wantCode {
			t.Fatalf("wrenn %s: code %d, want %d\n%s%s", strings.Join(args, " "), code, wantCode, out, errOut)
		}
		return out
	}
	run(0, "exec", s.id, "--background", "--tag", "job", "--", "sh", "-c", "echo early; until [ -e /tmp/go ]; do sleep 0.02; done; echo late; exit 6")
	if out := run(0, "ps", s.id); !strings.Contains(out, "job") {
		t.Errorf("ps shows %q", out)
	}
	eventually(t, settleLimit, func() error {
		if out := run(0, "logs", s.id, "job"); out != "early\n" {
			return fmt.Errorf("logs shows %q", out)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	follow := exec.CommandContext(ctx, p.bin, "logs", "-f", s.id, "job")
	follow.Env = append(os.Environ(), "WRENN_BASE_URL="+p.url, "WRENN_API_KEY="+p.key, "HOME="+p.home)
	var followed bytes.Buffer
	follow.Stdout, follow.Stderr = &followed, &followed
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	s.sh(t, "touch /tmp/go")
	_ = follow.Wait() // the code says it
	if code := follow.ProcessState.ExitCode(); code != 6 || followed.String() != "early\nlate\n" {
		t.Errorf("logs -f: %d, %q", code, &followed)
	}
	run(0, "exec", s.id, "--background", "--tag", "job", "--", "sleep", "1000")
	run(0, "kill", s.id, "job", "--signal", "TERM")
	eventually(t, settleLimit, func() error {
		if out := run(0, "ps", s.id); strings.Contains(out, "sleep") {
			return fmt.Errorf("ps shows %q", out)
		}
		return nil
	})
	const failed = 125
	run(failed, "kill", s.id, "job")
}
