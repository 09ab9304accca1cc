package webproxy

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"

	"github.com/wrenn-sandbox/wrenn/internal/relay"
)

// Crowd bounds the connections that clients have open to a server's listeners, all together,
// so that the process keeps file descriptors for its own work. Where one more comes than may
// be open, the one goes that has been of no use for longest: on which no request is being
// answered, be it idle or only half a request. Strangers who hold connections therefore keep
// nobody out. It is safe for concurrent use.
type Crowd struct {
	max int

	mu   sync.Mutex
	open int
	// unused has the connections that no handler works for, the one for longest in front.
	unused *list.List // of *crowdConn
}

// NewCrowd returns a crowd of at most so many connections.
func NewCrowd(most int) *Crowd { return &Crowd{max: most, unused: list.New()} }

// Guard makes a server know which of its connections are of use. It comes before the server
// serves, and after its handler is set. The server serves what Listen returns.
func (c *Crowd) Guard(s *http.Server) {
	next, before := s.Handler, s.ConnContext
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		if before != nil {
			ctx = before(ctx, conn)
		}
		return ConnContext(ctx, conn)
	}
	s.ConnState = func(conn net.Conn, state http.ConnState) {
		// It is the handler's own from then on, until that closes it.
		if in := crowdConnOf(conn); in != nil && state == http.StateHijacked {
			in.begin()
		}
	}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _ := r.Context().Value(connectionKey{}).(net.Conn)
		if in := crowdConnOf(conn); in != nil {
			in.begin()
			defer in.end()
		}
		next.ServeHTTP(w, r)
	})
}

// Listen returns a listener of TCP whose connections are of the crowd.
func (c *Crowd) Listen(l net.Listener) net.Listener { return &crowdListener{Listener: l, crowd: c} }

type crowdListener struct {
	net.Listener
	crowd *Crowd
}

var errNotTCP = errors.New("the listener is not one of TCP")

// Accept implements net.Listener.
func (l *crowdListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			_ = conn.Close()
			return nil, errNotTCP
		}
		if light, err := relay.NewLight(tcp); err == nil {
			if in := l.crowd.admit(light); in != nil {
				return in, nil
			}
		}
		_ = tcp.Close() // every other one is of use
	}
}

// admit takes a connection in, in the place of another if need be; nil when there is no
// place.
func (c *Crowd) admit(conn *relay.Light) *crowdConn {
	c.mu.Lock()
	var out *crowdConn
	if front := c.unused.Front(); c.open >= c.max && front != nil {
		out = front.Value.(*crowdConn)
		c.unused.Remove(front)
		out.place = nil
	}
	if c.open >= c.max && out == nil {
		c.mu.Unlock()
		return nil
	}
	c.open++
	in := &crowdConn{Light: conn, crowd: c}
	in.place = c.unused.PushBack(in)
	c.mu.Unlock()
	if out != nil {
		_ = out.Close() // its client may have been faster
	}
	return in
}

// crowdConn is a connection of a crowd.
type crowdConn struct {
	*relay.Light
	crowd *Crowd

	// These are guarded by crowd.mu. place is where it is in the list, nil when it is not.
	place  *list.Element
	busy   int // how many handlers work for it
	closed bool
}

// crowdConnOf finds the connection of a crowd under one of a server, nil when it is none.
func crowdConnOf(conn net.Conn) *crowdConn {
	if secured, under := conn.(*tls.Conn); under {
		conn = secured.NetConn()
	}
	in, _ := conn.(*crowdConn)
	return in
}

// begin notes that a handler begins to work for it.
func (n *crowdConn) begin() {
	n.crowd.mu.Lock()
	defer n.crowd.mu.Unlock()
	n.busy++
	n.removeLocked()
}

// end notes that a handler has done so.
func (n *crowdConn) end() {
	n.crowd.mu.Lock()
	defer n.crowd.mu.Unlock()
	if n.busy--; n.busy == 0 && !n.closed {
		n.place = n.crowd.unused.PushBack(n)
	}
}

// removeLocked takes it off the list. The caller holds crowd.mu.
func (n *crowdConn) removeLocked() {
	if n.place != nil {
		n.crowd.unused.Remove(n.place)
		n.place = nil
	}
}

// Close implements net.Conn.
func (n *crowdConn) Close() error {
	err := n.Light.Close()
	n.crowd.mu.Lock()
	defer n.crowd.mu.Unlock()
	if !n.closed {
		n.closed = true
		n.crowd.open--
		n.removeLocked()
	}
	return err
}
