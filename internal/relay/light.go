package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// lightMost is how much is read or written at most without a word to the scheduler, in
// bytes: what a header and a small body have room in.
const lightMost = 4 << 10

// Light is a connection of TCP that reads and writes little at a small price. Go takes every
// system call for one that may last: it wakes its monitor, which then looks every 20 µs
// whether that is so, and gives the processor's place away. For a small request that passes
// by and waits between, this is a large part of all that it costs. Sockets of package net
// never block, so that these calls do not last.
type Light struct {
	*net.TCPConn
	raw syscall.RawConn
}

// NewLight returns a connection that is to be used in place of conn.
func NewLight(conn *net.TCPConn) (*Light, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Light{TCPConn: conn, raw: raw}, nil
}

// Read implements io.Reader.
func (l *Light) Read(p []byte) (int, error) {
	if len(p) == 0 || len(p) > lightMost {
		return l.TCPConn.Read(p)
	}
	n, err := try(l.raw.Read, syscall.SYS_READ, p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, l.failed("read", err)
}

// Write implements io.Writer.
func (l *Light) Write(p []byte) (n int, err error) {
	if len(p) > lightMost {
		return l.TCPConn.Write(p)
	}
	for n < len(p) && err == nil {
		var some int
		some, err = try(l.raw.Write, syscall.SYS_WRITE, p[n:])
		n += some
	}
	return n, l.failed("write", err)
}

// failed is an error as package net has it.
func (l *Light) failed(op string, err error) error {
	var already *net.OpError
	if err == nil || errors.Is(err, io.EOF) || errors.As(err, &already) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: l.LocalAddr(), Addr: l.RemoteAddr(), Err: os.NewSyscallError(op, err)}
}

// try makes a system call on a connection when that is ready for it.
func try(ready func(func(fd uintptr) bool) error, call uintptr, p []byte) (int, error) {
	var n uintptr
	var failed syscall.Errno
	err := ready(func(fd uintptr) bool {
		for {
			n, _, failed = syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
			if failed != syscall.EINTR {
				return failed != syscall.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case failed != 0:
		return 0, failed
	}
	return int(n), nil
}

// nothingToRead reports whether a socket is open and nothing has come.
func nothingToRead(fd uintptr) bool {
	var one byte
	_, _, failed := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&one)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return failed == syscall.EAGAIN
}
