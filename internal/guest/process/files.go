package process

import (
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is what an output pipe holds, in bytes. With the kernel's default of 64 KiB a
// process that prints much is woken for every second read of a small buffer.
const pipeSize = 256 << 10

// files are the two sides of a process's standard streams: pipes, or a terminal.
type files struct {
	child          [3]int
	stdin          *os.File // nil: the process reads /dev/null or a terminal
	stdout, stderr *os.File // nil with a terminal
	master         *os.File // the daemon's side of a terminal, or nil
}

// openPipes makes pipes for a process that has no terminal. They are its user's, who could
// not open /dev/stdout otherwise.
func openPipes(stdin bool, user User) (f *files, err error) {
	f = &files{child: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			f.closeChild()
			f.closeParent()
		}
	}()
	if stdin {
		if f.child[0], f.stdin, err = pipe(0, user); err != nil {
			return f, err
		}
	} else if f.child[0], err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return f, err
	}
	if f.child[1], f.stdout, err = pipe(1, user); err != nil {
		return f, err
	}
	f.child[2], f.stderr, err = pipe(1, user)
	return f, err
}

// pipe returns the child's end of a new pipe, the reading one (0) or the writing one (1),
// and the other end for the daemon, which must not block a thread.
func pipe(childEnd int, user User) (int, *os.File, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, err
	}
	ours := ends[1-childEnd]
	if err := unix.SetNonblock(ours, true); err != nil {
		_ = unix.Close(ends[0])
		_ = unix.Close(ends[1])
		return -1, nil, err
	}
	if childEnd == 1 {
		// Refused where the user has many pipes; the default size works as well, slower.
		_, _ = unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, pipeSize)
	}
	if int(user.UID) != unix.Geteuid() {
		// Where pipes cannot be given away, the process still has them open.
		_ = unix.Fchown(ends[childEnd], int(user.UID), int(user.GID))
	}
	return ends[childEnd], os.NewFile(uintptr(ours), "pipe"), nil
}

// outlet is where a process's output is read.
type outlet struct {
	file *os.File
	kind Kind
}

func (f *files) outlets() []outlet {
	if f.master != nil {
		return []outlet{{f.master, Terminal}}
	}
	return []outlet{{f.stdout, Stdout}, {f.stderr, Stderr}}
}

func (f *files) closeChild() {
	for i, fd := range f.child {
		if fd >= 0 && (i == 0 || fd != f.child[0]) { // a terminal is all three
			_ = unix.Close(fd)
		}
	}
}

func (f *files) closeParent() {
	for _, file := range []*os.File{f.stdin, f.stdout, f.stderr, f.master} {
		if file != nil {
			_ = file.Close()
		}
	}
}
