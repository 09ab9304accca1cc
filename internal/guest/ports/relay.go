package ports

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxRelays bounds how many connections are forwarded at once, over all ports. Each
	// takes two sockets and, while data moves, two pipes.
	maxRelays = 1024
	// dialTimeout bounds how long a server on loopback may take to accept; its backlog may
	// be full.
	dialTimeout = 10 * time.Second
)

// relays counts connections that are forwarded.
type relays struct{ slots chan struct{} }

func newRelays() relays { return relays{slots: make(chan struct{}, maxRelays)} }

// enter waits for room; false when ctx ends first.
func (r relays) enter(ctx context.Context) bool {
	select {
	case r.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r relays) leave() { <-r.slots }

// relay carries what one connection brings to the target and back, until both sides have
// said all. The end of one direction is passed on as such. When ctx ends, or one side
// breaks, the other is reset: it must not take what it has got for the whole.
func (w *watcher) relay(ctx context.Context, outside *net.TCPConn, target netip.AddrPort) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", target.String())
	if err != nil {
		reset(outside)
		poke(w.wake) // most likely the server has gone
		return
	}
	inside := conn.(*net.TCPConn)

	both := func() {
		reset(outside)
		reset(inside)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		both()
	})
	var wg sync.WaitGroup
	wg.Go(func() { pass(inside, outside, both) })
	pass(outside, inside, both)
	wg.Wait()
	if !stop() {
		<-interrupted
	}
	_ = outside.Close()
	_ = inside.Close()
}

// pass copies one direction. Between two TCP connections io.Copy has the kernel move the
// data.
func pass(to, from *net.TCPConn, broken func()) {
	if _, err := io.Copy(to, from); err != nil {
		broken()
		return
	}
	if to.CloseWrite() != nil {
		broken()
	}
}

// reset closes a connection so that its peer sees an error.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
