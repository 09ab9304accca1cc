package lifecycle

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stallRounds is in how many steps a stall is counted: a pause, over which the clock jumps,
// costs one of them at most.
const stallRounds = 30

// Connections knows the connections of the daemon's HTTP server, so that they can be set
// going again after a restore, and ends those whose clients have stopped to read. It is safe
// for concurrent use.
type Connections struct {
	stall time.Duration

	mu   sync.Mutex
	open map[*connection]struct{}
}

// NewConnections returns a Connections that ends a connection when something has waited
// for stall to be sent on it, and its client took not one byte of it.
func NewConnections(stall time.Duration) *Connections {
	return &Connections{stall: stall, open: make(map[*connection]struct{})}
}

// Listen returns a listener whose connections are known until they are closed. Until it is
// closed itself a goroutine looks after them.
func (c *Connections) Listen(inner net.Listener) net.Listener {
	l := &listener{Listener: inner, conns: c, closed: make(chan struct{})}
	go c.watch(l.closed)
	return l
}

// watch interrupts what has been writing since it last looked.
func (c *Connections) watch(closed <-chan struct{}) {
	tick := time.NewTicker(c.stall / stallRounds)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-closed:
			return
		}
		c.mu.Lock()
		for conn := range c.open {
			conn.look()
		}
		c.mu.Unlock()
	}
}

// listener is what Listen returns.
type listener struct {
	net.Listener
	conns   *Connections
	once    sync.Once
	closed  chan struct{}
	closing error
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &connection{Conn: accepted, conns: l.conns}
	l.conns.mu.Lock()
	defer l.conns.mu.Unlock()
	l.conns.open[conn] = struct{}{}
	return conn, nil
}

// Close ends the listener and not its connections.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.closing = l.Listener.Close()
		close(l.closed)
	})
	return l.closing
}

// connection is a connection of which it is known whether a write gets on. To know that
// costs the writer nothing that could be felt: only a write that lasts is interrupted now
// and then, to see how much of it has gone out.
//
// It is no io.ReaderFrom, unlike what it wraps: nobody could look into such a write.
type connection struct {
	net.Conn
	conns *Connections
	// writes counts beginnings and ends of writes: it is odd while one is under way.
	writes atomic.Uint64
	seen   uint64 // writes when the watch last looked, which is for the watch alone
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// look interrupts a write that was under way already when it was last called.
func (c *connection) look() {
	now := c.writes.Load()
	if now%2 == 1 && now == c.seen {
		_ = c.SetWriteDeadline(longAgo) // fails where there is nothing to interrupt any more
	}
	c.seen = now
}

// Write writes p, unless the client takes nothing for too long.
func (c *connection) Write(p []byte) (int, error) {
	c.writes.Add(1)
	defer c.writes.Add(1)
	for total, stalled := 0, 0; ; {
		n, err := c.Conn.Write(p[total:])
		total += n
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return total, err
		}
		if stalled++; n > 0 {
			stalled = 0
		}
		if stalled > stallRounds {
			return total, fmt.Errorf("the client took nothing for %v: %w", c.conns.stall, err)
		}
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			return total, err
		}
	}
}

// Close ends the connection.
func (c *connection) Close() error {
	c.conns.mu.Lock()
	delete(c.conns.open, c)
	c.conns.mu.Unlock()
	return c.Conn.Close()
}

// Keep-alives of connections that are known to be there, as Go sets them, and of those of
// which that is to be found out; and how long that is tried.
var (
	keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 9}
	probing   = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 9}
)

const probeTime = 5 * time.Second

// Revive makes the kernel send on every connection what is to be sent. A restored gVisor
// has none of its TCP timers: not that of retransmission, not that of window probes, not
// that of keep-alives. What was under way when it was written down is waited for until
// somebody writes; and who waits for it does not write. Setting TCP_NODELAY, though it is
// set already, looks at what there is to send, and with that starts the timers.
//
// Clients may be gone: what they said of that was lost while the sandbox was away. Who waits
// for more from one, as an upload does with what it has so far on the disk, sends nothing
// and would never be told. So connections to an address that the sandbox has no more end,
// and the others are probed once, which has those reset that their client knows nothing of.
func (c *Connections) Revive() {
	addresses, err := net.InterfaceAddrs()
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		tcp, ok := conn.Conn.(*net.TCPConn)
		switch {
		case !ok:
		case err == nil && !has(addresses, tcp.LocalAddr()):
			// Those who use it see it fail, and close it. Nobody is there to be told.
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
		default:
			_ = tcp.SetNoDelay(true) // one that has broken meanwhile needs nothing
			_ = tcp.SetKeepAliveConfig(probing)
			time.AfterFunc(probeTime, func() { _ = tcp.SetKeepAliveConfig(keepAlive) })
		}
	}
}

// has reports whether a connection's own address is one of these.
func has(addresses []net.Addr, own net.Addr) bool {
	tcp, ok := own.(*net.TCPAddr)
	return !ok || tcp.IP.IsLoopback() || slices.ContainsFunc(addresses, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(tcp.IP)
	})
}

// gvisorRelease is how a kernel release ends that is gVisor's.
const gvisorRelease = "-gvisor"

// CalmTCP turns tail loss probes (RACK) off where the kernel is gVisor. There every write
// puts the probe off and with it the retransmission, even a write that the congestion
// window does not let out: a command that prints often and little would stand still after
// a lost acknowledgement, until its socket's buffer is full, which takes it 15 seconds and
// more. Without the probes gVisor retransmits after 200 ms, as RFC 6675 says.
func CalmTCP() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	if !strings.HasSuffix(unix.ByteSliceToString(name.Release[:]), gvisorRelease) {
		return nil
	}
	err := os.WriteFile("/proc/sys/net/ipv4/tcp_recovery", []byte("0\n"), 0o644) //nolint:gosec // the mode is that of a file that is there
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a sandbox without a network
	}
	return err
}
