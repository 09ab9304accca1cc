package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPTY returns the two sides of a new terminal.
func newPTY() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "ptmx") // non-blocking, so that reads have deadlines
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// openTerminal returns a terminal, and what a person in front of it sees.
func openTerminal(t *testing.T) (terminal, person *os.File) {
	t.Helper()
	person, terminal, err := newPTY()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close(); terminal.Close() })
	resize(t, person, 80, 24)
	return terminal, person
}

// resize changes the size of a terminal's window.
func resize(t *testing.T, person *os.File, cols, rows uint16) {
	t.Helper()
	raw, err := person.SyscallConn() // Fd would make reads blocking
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}

// readUntil reads what a person sees until it contains text.
func readUntil(t *testing.T, person *os.File, text string) string {
	t.Helper()
	return readOn(t, person, "", text)
}

// readOn is readUntil for who has seen something already.
func readOn(t *testing.T, person *os.File, before, text string) string {
	t.Helper()
	if err := person.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	seen.WriteString(before)
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), text) {
		n, err := person.Read(buf)
		if err != nil {
			t.Fatalf("saw %q, then %v; waited for %q", &seen, err, text)
		}
		seen.Write(buf[:n])
	}
	return seen.String()
}

func TestQuestionsAreNotAskedAgain(t *testing.T) {
	for _, question := range []string{
		"\x1b[c", "\x1b[>c", "\x1b[0;1c", "\x1b[6n", "\x1b[?6n", "\x1b[>q", "\x1b[>0q", "\x1b[18t", "\x1b[14;2t", "\x1b[21t", "\x1b[?u",
		"\x1b]10;?\a", "\x1b]11;?\x1b\\", "\x1b[?2026$p", "\x1bP+q544e\x1b\\", "\x05",
	} {
		if left := questions.ReplaceAllString("a"+question+"b", ""); left != "ab" {
			t.Errorf("%q is asked again: %q", question, left)
		}
	}
	for _, plain := range []string{"\x1b[2J", "\x1b[3;6r", "\x1b[22;0t", "\x1b[1m", "\x1b]0;title\a", "\x1b[?25h", "\x1b[5q"} {
		if left := questions.ReplaceAllString(plain, ""); left != plain {
			t.Errorf("%q is taken for a question: %q", plain, left)
		}
	}
}
