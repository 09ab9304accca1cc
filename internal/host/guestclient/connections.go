package guestclient

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// connections makes the connections to one guest and can cut all of them. A guest that
// is gone sends no reset: without the cut, a request to it would wait for minutes until
// TCP gives up. It is safe for concurrent use.
type connections struct {
	dialer  net.Dialer
	address net.Addr

	mu     sync.Mutex
	closed error // why; nil while open
	open   map[*connection]struct{}
}

// errClosed is the cause of what fails because of a close, with the reason that it gave.
type errClosed struct{ reason error }

func (e *errClosed) Error() string { return "closed: " + e.reason.Error() }

// keepAlive finds out in seconds that a guest has gone. It does not set going again what was
// in flight when a guest was written down: gVisor ignores what keep-alives acknowledge, and
// envd does that at its init.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 60}

func newConnections(address net.Addr) *connections {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}
	return &connections{dialer: dialer, address: address, open: map[*connection]struct{}{}}
}

// transport returns a transport with a pool of its own over these connections. buffer is
// the size of its read and write buffers in bytes; 0 is net/http's default.
func (c *connections) transport(buffer int) *http.Transport {
	return &http.Transport{
		DialContext:         c.dial,
		MaxIdleConnsPerHost: maxIdlePerHost,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true,
		ReadBufferSize:      buffer,
		WriteBufferSize:     buffer,

		MaxResponseHeaderBytes: maxHeaders,
	}
}

// dial connects to the guest, whatever address a request names.
func (c *connections) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	raw, err := c.dialer.DialContext(ctx, c.address.Network(), c.address.String())
	if err != nil {
		return nil, err
	}
	conn := &connection{Conn: raw, owner: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		_ = raw.Close()
		return nil, c.closed
	}
	c.open[conn] = struct{}{}
	return conn, nil
}

// close cuts every connection and refuses new ones, for a reason. The first one stays.
func (c *connections) close(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == nil {
		c.closed = &errClosed{reason}
	}
	for conn := range c.open {
		// Data that the guest will never take must not keep the socket alive.
		if tcp, ok := conn.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Conn.Close() // wakes who waits; what it says about the socket helps nobody
	}
}

// connection is a connection that its owner forgets when it is closed.
type connection struct {
	net.Conn
	owner *connections
}

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.owner.explain(err)
}

func (c *connection) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.owner.explain(err)
}

// explain gives what failed after a close the close's reason.
func (c *connections) explain(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return c.closed
	}
	return err
}

func (c *connection) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}
