package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tunnelBuffer is what connections are copied through, in bytes.
	tunnelBuffer = 32 << 10
	// plainBuffer is that for connections that cannot say whether there is something to
	// read, as those under TLS, in bytes. They hold it while they wait.
	plainBuffer = 4 << 10
	// halfOpenTime is how long one direction goes on in silence when the other has ended.
	halfOpenTime = 10 * time.Minute
)

var tunnelBuffers = sync.Pool{New: func() any { b := make([]byte, tunnelBuffer); return &b }}

// Tunnel is two connections that are one: bytes in both directions, until both have ended
// or one has failed. Waiting costs it two small goroutines and no buffers, since most of
// these connections wait most of the time.
type Tunnel struct {
	client, server net.Conn

	ended func()
	moved func(up, down int)
	// left counts the directions that have not ended.
	left atomic.Int32
	// said is set when the end of a direction was passed on to that side.
	saidClient, saidServer atomic.Bool
}

// Run copies in the background. moved, unless nil, is told of bytes to the server and to the
// client, and ended is called once, when nothing is left.
func (t *Tunnel) Run(moved func(up, down int), ended func()) {
	t.moved, t.ended = moved, ended
	const directions = 2
	t.left.Store(directions)
	go t.copy(t.server, t.client, true)
	go t.copy(t.client, t.server, false)
}

// Cut resets both connections, at any time.
func (t *Tunnel) Cut() {
	Reset(t.client)
	Reset(t.server)
}

// copy moves what comes from one side to the other.
func (t *Tunnel) copy(to, from net.Conn, up bool) {
	err := eachPiece(from, func(piece []byte) error {
		_, err := to.Write(piece)
		if t.left.Load() == 1 {
			_ = from.SetReadDeadline(time.Now().Add(halfOpenTime)) // it may be closed already
		}
		switch {
		case t.moved == nil:
		case up:
			t.moved(len(piece), 0)
		default:
			t.moved(0, len(piece))
		}
		return err
	})
	toldTo, toldFrom := &t.saidServer, &t.saidClient
	if !up {
		toldTo, toldFrom = toldFrom, toldTo
	}
	if err == nil && !toldFrom.Load() && hungUp(from) {
		err = errHungUp
	}
	if err == nil {
		toldTo.Store(true)
		err = closeWrite(to)
	}
	if err != nil {
		t.Cut() // the other direction ends by that, too
	}
	if t.left.Add(-1) > 0 {
		if err == nil {
			_ = to.SetReadDeadline(time.Now().Add(halfOpenTime)) // it may be closed already
		}
		return
	}
	_ = t.client.Close()
	_ = t.server.Close()
	if t.ended != nil {
		t.ended()
	}
}

// errHungUp is that the other end of a connection is gone altogether, and not only done
// with sending.
var errHungUp = errors.New("the other end is gone")

// hungUp reports whether a Unix socket's other end was closed. There is no reset on these,
// so this is how one hop hears from the next one that a connection did not end properly. It
// is of no use when our end was told to send no more.
func hungUp(conn net.Conn) bool {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(poll, 0)
		gone = err == nil && n > 0 && poll[0].Revents&unix.POLLHUP != 0
	})
	return gone || err != nil
}

// closeWrite says to the other end of a connection that nothing more comes.
func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}

// eachPiece calls each with what comes from a connection until its end, which is no error.
func eachPiece(from net.Conn, each func([]byte) error) error {
	source, ok := from.(syscall.Conn)
	if !ok {
		return eachPlainly(from, each)
	}
	raw, err := source.SyscallConn()
	if err != nil {
		return err
	}
	p := piece{}
	for {
		if err := raw.Read(p.try); err != nil {
			return err
		}
		err := p.failed
		if err == nil && p.n > 0 {
			err = each((*p.buf)[:p.n])
		}
		ended := p.failed == nil && p.n == 0
		p.giveBack()
		if err != nil || ended {
			return err
		}
	}
}

// piece is what was read at one time.
type piece struct {
	buf    *[]byte
	n      int
	failed error
}

// try reads what there is. It holds a buffer only when there is something: when it is
// false, whoever calls it waits.
func (p *piece) try(fd uintptr) bool {
	p.buf = tunnelBuffers.Get().(*[]byte)
	for {
		p.n, p.failed = unix.Read(int(fd), *p.buf)
		if !errors.Is(p.failed, unix.EINTR) {
			break
		}
	}
	if errors.Is(p.failed, unix.EAGAIN) {
		p.giveBack()
		return false
	}
	return true
}

func (p *piece) giveBack() {
	tunnelBuffers.Put(p.buf)
	p.buf = nil
}

// eachPlainly is eachPiece for connections that only their own Read can read.
func eachPlainly(from io.Reader, each func([]byte) error) error {
	buf := make([]byte, plainBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if err := each(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
