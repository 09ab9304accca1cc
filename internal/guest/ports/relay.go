package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds how long a server on loopback may take to accept; its backlog may be
// full.
const dialTimeout = 10 * time.Second

// pieceSize is what the rest of a half-open connection is copied through, in bytes.
const pieceSize = 32 << 10

var pieces = sync.Pool{New: func() any { b := make([]byte, pieceSize); return &b }}

// past is a time that ends whatever waits for a connection.
var past = time.Unix(1, 0)

// carry moves what a connection brings to the target and back, until both sides have said
// all. The end of one direction is passed on as such. When ctx ends, or one side breaks,
// the other is reset: it must not take what it has got for the whole.
func (w *watcher) carry(ctx context.Context, r *relay, target netip.AddrPort) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", target.String())
	if err != nil {
		reset(r.outside)
		poke(w.wake) // most likely the server has gone
		return
	}
	w.relays.begin(r, conn.(*net.TCPConn))

	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		r.cut()
	})
	var wg sync.WaitGroup
	wg.Go(func() { r.pass(r.inside, r.outside) })
	r.pass(r.outside, r.inside)
	wg.Wait()
	if !stop() {
		<-interrupted
	}
	_ = r.outside.Close()
	_ = r.inside.Close()
}

// pass copies one direction. Between two TCP connections io.Copy has the kernel move the
// data, and tells only when it ends how much that was; so a sample ends it, by a deadline.
// It waits for data then, so none is lost.
func (r *relay) pass(to, from *net.TCPConn) {
	for {
		n, err := io.Copy(to, from)
		if n > 0 {
			r.touch()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if r.all.goesOn(r, from) {
				continue
			}
			err = r.passRest(to, from)
		}
		if err == nil {
			r.all.directionEnded(r, to)
			err = to.CloseWrite()
		}
		if err != nil {
			r.cut()
		}
		return
	}
}

// passRest copies the direction that goes on when the other has ended. While it waits it
// holds nothing: most that stay half-open wait for an answer that nobody wants.
func (r *relay) passRest(to, from *net.TCPConn) error {
	if err := from.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	raw, err := from.SyscallConn()
	if err != nil {
		return err
	}
	for {
		if err := raw.Read(readable); err != nil {
			return err
		}
		if err := r.passPiece(to, from); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// readable says whether a read would not wait. An error is for the read to report.
func readable(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err != nil || n > 0
}

// passPiece copies what there is to read.
func (r *relay) passPiece(to, from *net.TCPConn) error {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	n, err := from.Read(*buf)
	if err != nil {
		return err
	}
	r.touch()
	if _, err := to.Write((*buf)[:n]); err != nil {
		return err
	}
	r.touch()
	return nil
}

// reset closes a connection so that its peer sees an error.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
