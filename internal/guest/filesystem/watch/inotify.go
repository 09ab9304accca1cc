package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// readBuffer is how much is read of the kernel's queue at once, in bytes: 2000 events and
// more, so that a burst costs few calls.
const readBuffer = 64 << 10

// inotify is the kernel's side of a watch. All but close is for one goroutine.
type inotify struct {
	file *os.File
	conn syscall.RawConn
	buf  []byte
	rest []byte // what of buf has not been returned
	// position is how many bytes of the kernel's queue have been returned.
	position int64
}

// rawEvent is an event as the kernel tells it.
type rawEvent struct {
	wd           int32
	mask, cookie uint32
	name         string
	position     int64 // of its first byte in all that was ever queued
}

func (ev rawEvent) is(bits uint32) bool { return ev.mask&bits != 0 }

func openInotify() (*inotify, error) {
	// The runtime's poller waits for it, so that close ends a read.
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return nil, fault.Wrap(err, fault.RateLimited, "the sandbox has as many watches as its system permits; end some")
	}
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	in := &inotify{file: os.NewFile(uintptr(fd), "inotify"), buf: make([]byte, readBuffer)}
	if in.conn, err = in.file.SyscallConn(); err != nil {
		in.close()
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return in, nil
}

func (in *inotify) close() { _ = in.file.Close() }

// control runs f with the descriptor, which stays open meanwhile.
func (in *inotify) control(f func(fd int) error) error {
	var failed error
	if err := in.conn.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

func (in *inotify) add(path string, mask uint32) (wd int32, err error) {
	err = in.control(func(fd int) error {
		added, err := unix.InotifyAddWatch(fd, path, mask)
		wd = int32(added)
		return err
	})
	return wd, err
}

func (in *inotify) remove(wd int32) {
	// What is not watched any more needs no removing.
	_ = in.control(func(fd int) error {
		_, err := unix.InotifyRmWatch(fd, uint32(wd))
		return err
	})
}

// horizon is the position behind all that is queued by now.
func (in *inotify) horizon() (int64, error) {
	queued := 0
	err := in.control(func(fd int) (err error) {
		queued, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return in.position + int64(len(in.rest)) + int64(queued), err
}

// buffered says whether next returns without asking the kernel.
func (in *inotify) buffered() bool { return len(in.rest) > 0 }

// next waits for the next event.
func (in *inotify) next() (rawEvent, error) {
	if len(in.rest) == 0 {
		n, err := in.file.Read(in.buf)
		if err != nil {
			return rawEvent{}, err
		}
		in.rest = in.buf[:n]
	}
	ev, size, err := parseEvent(in.rest)
	if err != nil {
		return rawEvent{}, err
	}
	ev.position = in.position
	in.position += int64(size)
	in.rest = in.rest[size:]
	return ev, nil
}

// parseEvent reads one struct inotify_event (inotify(7)) and says how long it is: four
// words of 32 bits (watch, mask, cookie, length of the name), then the name with NULs.
func parseEvent(buf []byte) (rawEvent, int, error) {
	if len(buf) < unix.SizeofInotifyEvent {
		return rawEvent{}, 0, fmt.Errorf("inotify: an event of %d bytes", len(buf))
	}
	order := binary.NativeEndian
	size := unix.SizeofInotifyEvent + int64(order.Uint32(buf[12:]))
	if size > int64(len(buf)) {
		return rawEvent{}, 0, fmt.Errorf("inotify: an event of %d bytes, where it should have %d", len(buf), size)
	}
	name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:size], []byte{0})
	return rawEvent{
		wd: int32(order.Uint32(buf)), mask: order.Uint32(buf[4:]), cookie: order.Uint32(buf[8:]), name: string(name),
	}, int(size), nil
}
