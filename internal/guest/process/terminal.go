package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Size is the size of a terminal, in characters.
type Size struct{ Cols, Rows uint16 }

// defaultSize is what terminals have had since there are any.
var defaultSize = Size{Cols: 80, Rows: 24}

// ttyMode are the permissions of a terminal: its user reads and writes it, its group (tty)
// may write to it.
const ttyMode = 0o620

// openTerminal makes a pseudo-terminal. The process gets the terminal as all of its
// standard streams, and owns it, so that it can open it again by its name.
func openTerminal(size Size, user User) (_ *files, err error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	f := &files{child: [3]int{-1, -1, -1}, master: os.NewFile(uintptr(master), "terminal")}
	defer func() {
		if err != nil {
			f.closeChild()
			f.closeParent()
		}
	}()
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("ask for the terminal's number: %w", err)
	}
	tty, err := unix.Open("/dev/pts/"+strconv.FormatUint(uint64(n), 10), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the terminal: %w", err)
	}
	f.child = [3]int{tty, tty, tty}
	if err := setSize(master, size); err != nil {
		return nil, fmt.Errorf("set the terminal's size: %w", err)
	}
	// Neither is needed to use the terminal: some kernels know no owner of it, and some no
	// line editing in UTF-8.
	_ = errors.Join(unix.Fchown(tty, int(user.UID), -1), unix.Fchmod(tty, ttyMode))
	if termios, err := unix.IoctlGetTermios(tty, unix.TCGETS); err == nil {
		termios.Iflag |= unix.IUTF8
		_ = unix.IoctlSetTermios(tty, unix.TCSETS, termios)
	}
	return f, nil
}

func setSize(fd int, size Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: size.Cols, Row: size.Rows})
}

// Resize gives the process's terminal another size; its foreground job gets SIGWINCH.
func (p *Process) Resize(size Size) error {
	if p.files.master == nil {
		return fault.New(fault.Internal, "process %d has no terminal to resize", p.pid)
	}
	if size.Cols == 0 || size.Rows == 0 {
		return fault.New(fault.InvalidRequest, "a terminal needs a column and a row at least")
	}
	raw, err := p.files.master.SyscallConn()
	if err == nil {
		var ioctlErr error
		err = raw.Control(func(fd uintptr) { ioctlErr = setSize(int(fd), size) })
		err = errors.Join(err, ioctlErr)
	}
	if errors.Is(err, os.ErrClosed) {
		return fault.New(fault.NotFound, "process with pid %d not found", p.pid)
	}
	if err != nil {
		return fault.Wrap(err, fault.Internal, "the terminal of process %d could not be resized", p.pid)
	}
	p.output.resize(size)
	return nil
}

// WriteTerminal types data into the process's terminal, waiting while nothing reads it.
func (p *Process) WriteTerminal(ctx context.Context, data []byte) error {
	if p.files.master == nil {
		return fault.New(fault.Internal, "process %d has no terminal; send the input as stdin", p.pid)
	}
	return p.write(ctx, data, "terminal")
}

// signalTerminal sends sig to the leader of a terminal's session and to the job in its
// foreground, which has a process group of its own. When the terminal is killed, its other
// jobs get what the closing of a terminal means: SIGHUP, and SIGCONT to act on it. Those
// that were started to survive that (nohup) do.
//
// The leader must not have been waited for, so that the session's id is still its own.
func (p *Process) signalTerminal(sig unix.Signal) error {
	foreground, known := p.foreground()
	return signalSession(p.pid, sig, foreground, known)
}

// signalSession is signalTerminal for the session of leader. Where the foreground job is
// not known all jobs take its place; but when the terminal is killed they are no more than
// hung up, since those that survive that were started to do so.
func signalSession(leader int, sig unix.Signal, foreground int, known bool) error {
	var others []int
	if sig == unix.SIGKILL || !known {
		others = sessionGroups(leader)
	}
	// The leader first: a shell that lives would report the end of its job.
	err := unix.Kill(-leader, sig)
	if known && foreground != leader {
		_ = unix.Kill(-foreground, sig) // gone is as good
	}
	for _, group := range others {
		switch {
		case group == leader || known && group == foreground:
		case sig == unix.SIGKILL:
			_ = errors.Join(unix.Kill(-group, unix.SIGHUP), unix.Kill(-group, unix.SIGCONT))
		default:
			_ = unix.Kill(-group, sig)
		}
	}
	return err
}

// foreground returns the process group in the foreground of the terminal. gVisor tells it
// only to processes of the terminal's own session, by either side of the terminal, and not
// at all in /proc (its field tpgid is always 0).
func (p *Process) foreground() (group int, known bool) {
	if raw, err := p.files.master.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { group, _ = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	}
	return group, group > 0
}

// sessionGroups returns the process groups of a session.
func sessionGroups(session int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var groups []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if group, of := groupAndSession(pid); of == session && !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	return groups
}

// groupAndSession reads them from /proc/PID/stat, see proc_pid_stat(5); they are 0 when
// the process is gone.
func groupAndSession(pid int) (group, session int) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	// The name in parentheses may contain anything, also what looks like its end.
	rest := data[bytes.LastIndexByte(data, ')')+1:]
	var state string
	var parent int
	if _, err := fmt.Fscan(bytes.NewReader(rest), &state, &parent, &group, &session); err != nil {
		return 0, 0
	}
	return group, session
}

// reopenWait is how long after the last holder of a terminal let it go one looks again
// whether a process has opened it anew.
const reopenWait = 100 * time.Millisecond

// awaitReopening waits a moment for a terminal that nobody holds to be held again, which
// programs that close their streams and open /dev/tty do. It says whether the process is
// gone, and what is there now is all that there will be.
func (p *Process) awaitReopening() (gone bool) {
	wait := time.NewTimer(reopenWait)
	defer wait.Stop()
	select {
	case <-p.gone:
		return true
	case <-wait.C:
		return false
	}
}
