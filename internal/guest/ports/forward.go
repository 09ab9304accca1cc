package ports

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// acceptPause is how long accepting rests when the system has no file or memory for
// another connection.
const acceptPause = 100 * time.Millisecond

// forward makes one loopback server reachable at one outside address. While it is open,
// nobody else can listen on that address and port, nor on all addresses with that port.
type forward struct {
	outside, target netip.AddrPort
	listener        *net.TCPListener
	cancel          context.CancelFunc // ends everything of it but its relays
	done            chan struct{}      // closed when the port is free again
}

// open begins to listen outside. Connections that are forwarded outlive the forward, as
// they outlive a server's own listener; they end with ctx.
func (w *watcher) open(ctx context.Context, outside, target netip.AddrPort) (*forward, error) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(false) // its sockets cannot be spliced, and nobody outside speaks it
	// Go sets SO_REUSEADDR: connections of an earlier forward that are still winding down
	// do not matter. It does not let two sockets listen, so a server's is never taken over.
	ln, err := config.Listen(ctx, "tcp", outside.String())
	if err != nil {
		return nil, err
	}
	own, cancel := context.WithCancel(ctx)
	f := &forward{
		outside: outside, target: target,
		listener: ln.(*net.TCPListener), cancel: cancel, done: make(chan struct{}),
	}
	w.wg.Go(func() { w.accept(ctx, own, f) })
	w.wg.Go(func() {
		<-own.Done()
		_ = f.listener.Close()
	})
	return f, nil
}

// close stops listening and returns when the port is free.
func (f *forward) close() {
	f.cancel()
	_ = f.listener.Close()
	<-f.done
}

// accept takes connections until own ends; each becomes a relay that ends with ctx.
func (w *watcher) accept(ctx, own context.Context, f *forward) {
	defer close(f.done)
	for {
		conn, err := f.listener.AcceptTCP()
		if err == nil {
			w.take(ctx, f, conn)
			continue
		}
		if own.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		w.subsystem.cfg.Logger.WarnContext(ctx, "accept on a forwarded port", "outside", f.outside, "err", err)
		select {
		case <-time.After(acceptPause):
		case <-own.Done():
			return
		}
	}
}

// take makes a connection a relay. One for which there is no room is refused: in a queue
// its client would wait for others that may never end.
func (w *watcher) take(ctx context.Context, f *forward, conn *net.TCPConn) {
	r := w.relays.enter(f.target.Port(), conn)
	if r == nil {
		reset(conn)
		w.subsystem.cfg.Logger.DebugContext(ctx, "too many connections to a forwarded port", "outside", f.outside)
		return
	}
	w.wg.Go(func() {
		defer w.relays.leave(r)
		w.carry(ctx, r, f.target)
	})
}

// watchOwners has a look taken as soon as a process ends that serves a new forward. The
// server that takes its place may want the port on all addresses, and would fail to get it
// while we hold it on one.
func (w *watcher) watchOwners(ctx context.Context, opened []*forward) {
	if len(opened) == 0 {
		return
	}
	var serving []listener
	for _, l := range w.known {
		for _, f := range opened {
			if l.addr == f.target {
				serving = append(serving, l)
			}
		}
	}
	owners, err := findOwners(ctx, serving)
	if err != nil {
		return // the next look notices as well, only later
	}
	watched := make(map[int]bool, len(owners))
	for _, o := range owners {
		if watched[o.pid] {
			continue
		}
		watched[o.pid] = true
		w.wg.Go(func() {
			if awaitEnd(ctx, o.pid) {
				poke(w.wake)
			}
		})
	}
}

// awaitEnd waits until a process has ended; false when ctx ends before, or when the kernel
// cannot tell.
func awaitEnd(ctx context.Context, pid int) bool {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	// A non-blocking pidfd waits in the runtime's poller, not in a thread.
	file := os.NewFile(uintptr(fd), "pidfd")
	defer file.Close()
	conn, err := file.SyscallConn()
	if err != nil {
		return false
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = file.SetReadDeadline(past)
	})
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	if !stop() {
		<-interrupted
		return false
	}
	return err == nil
}
