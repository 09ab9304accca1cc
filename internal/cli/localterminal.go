package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// What a terminal is told, as xterm and all that follow it understand it.
const (
	pushTitle   = "\x1b[22;0t"
	popTitle    = "\x1b[23;0t"
	setTitle    = "\x1b]0;%s\a"
	clearScreen = "\x1b[0m\x1b[2J\x1b[H"
	leaveScreen = "\x1b[?1049l" // the alternate one, of editors and pagers
	// plainModes ends what programs of a sandbox may have begun: attributes, a hidden
	// cursor, keys of applications, the mouse, news of the focus, bracketed paste; a
	// scroll region, whose end moves the cursor home, so that it is kept and brought back;
	// insertion, an origin, no wrapping, line drawing, and keys told in other ways.
	plainModes = "\x1b[0m\x1b[?25h\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?2004l" +
		"\x1b[?1005l\x1b[?1015l\x1b7\x1b[r\x1b8\x1b[4l\x1b[?6l\x1b[?7h\x1b(B\x0f\x1b[>4m\x1b[<u"
)

// localTerminal is the terminal that a person sits at, while a program of a sandbox has
// it. It must be given back on every way out.
type localTerminal struct {
	in, out *os.File
	before  *term.State
	back    sync.Once

	mu     sync.Mutex
	screen screen
}

// takeTerminal passes every key on unseen from now on, and sets the window's title. Without
// keys nobody reads them, and Ctrl-C still ends the program, which there would be no other
// way to leave.
func takeTerminal(in, out *os.File, title string, keys bool) (*localTerminal, error) {
	before, err := term.MakeRaw(int(in.Fd())) //nolint:gosec // a file descriptor is small
	if err == nil && !keys {
		if err = keepInterrupt(int(in.Fd())); err != nil { //nolint:gosec // a file descriptor is small
			_ = term.Restore(int(in.Fd()), before) //nolint:gosec // a file descriptor is small; the first error says more
		}
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.InvalidRequest, "the terminal cannot be set up: %v", err)
	}
	t := &localTerminal{in: in, out: out, before: before}
	t.say(pushTitle)
	t.setTitle(title)
	return t, nil
}

// keepInterrupt lets the key for it, which is Ctrl-C, interrupt. The other keys for signals
// stay without a meaning: what they do would leave the terminal as it is now.
func keepInterrupt(fd int) error {
	modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	modes.Lflag |= unix.ISIG
	const disabled = 0 // _POSIX_VDISABLE of Linux
	modes.Cc[unix.VQUIT], modes.Cc[unix.VSUSP] = disabled, disabled
	return unix.IoctlSetTermios(fd, unix.TCSETS, modes)
}

func (t *localTerminal) setTitle(title string) { t.say(fmt.Sprintf(setTitle, printable(title))) }

// giveBack makes the terminal what it was. It may be called more than once.
func (t *localTerminal) giveBack() {
	t.back.Do(func() {
		t.say(t.leave() + plainModes + popTitle)
		_ = term.Restore(int(t.in.Fd()), t.before) //nolint:gosec // a file descriptor is small; a terminal that is gone needs no restoring
	})
}

// clear makes an empty screen of whatever there is, for a program to paint anew.
func (t *localTerminal) clear() { t.say(t.leave() + plainModes + clearScreen) }

// leave returns what ends the alternate screen, if it is shown.
func (t *localTerminal) leave() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.screen.alternate {
		return ""
	}
	t.screen = screen{}
	return leaveScreen
}

// say writes what is for the terminal itself. One that is gone hears nothing.
func (t *localTerminal) say(text string) { _, _ = t.out.WriteString(text) }

// Write shows what a program prints.
func (t *localTerminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.screen.follow(p)
	t.mu.Unlock()
	return t.out.Write(p)
}

// size returns the terminal's size in characters, 0 when it does not know it.
func (t *localTerminal) size() (cols, rows int) {
	size, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ) //nolint:gosec // a file descriptor is small
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}

// resizes returns a channel that gets a value when the size has changed, and what ends it.
func (t *localTerminal) resizes() (changed <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	return c, func() { signal.Stop(c) }
}

// guard runs f and gives the terminal back before a panic of it ends the program, so that
// its words can be read.
func (t *localTerminal) guard(f func()) {
	defer func() {
		if p := recover(); p != nil {
			t.giveBack()
			panic(p)
		}
	}()
	f()
}

// screen knows which of the two screens of a terminal is shown, by what is printed. The
// zero value is the ordinary one.
type screen struct {
	alternate bool
	tail      []byte // the end of what came, which may be the beginning of a sequence
}

// switches are the sequences that change the screen.
var switches = map[string]bool{
	"\x1b[?1049h": true, "\x1b[?1049l": false, "\x1b[?1047h": true, "\x1b[?1047l": false, "\x1b[?47h": true, "\x1b[?47l": false,
	"\x1bc": false, // a full reset
}

// longestSwitch is the length of the longest of switches in bytes.
const longestSwitch = 8

func (s *screen) follow(p []byte) {
	if len(s.tail) > 0 {
		// What began in the last piece ends within the first bytes of this one.
		joint := slices.Concat(s.tail, p[:min(len(p), longestSwitch-1)])
		s.look(joint)
	}
	s.look(p)
	s.tail = append(s.tail, p[max(0, len(p)-longestSwitch+1):]...)
	s.tail = s.tail[max(0, len(s.tail)-longestSwitch+1):]
}

// look finds the last switch in text.
func (s *screen) look(text []byte) {
	last := -1
	for sequence, alternate := range switches {
		if at := bytes.LastIndex(text, []byte(sequence)); at > last {
			last, s.alternate = at, alternate
		}
	}
}
