package webproxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/relay"
)

const (
	dialTimeout = 5 * time.Second
	// dialAttempts and dialBackoff are for a port that is only opening: after a refusal the
	// guest is asked to look for it and it is tried at once, and then after one, and two,
	// times the backoff.
	dialAttempts = 4
	dialBackoff  = 100 * time.Millisecond

	// idleTimeout is shorter than that of the most impatient of common servers, which is
	// two seconds, so that it is never the server that closes a connection in the moment we
	// use it.
	idleTimeout = time.Second
	// maxIdle is how many connections to one guest are kept between requests, and
	// maxIdlePerPort to one of its ports.
	maxIdle        = 256
	maxIdlePerPort = 64

	// continueTimeout is how long a request that expects a 100 waits for it; servers that do
	// not know of it send none.
	continueTimeout = time.Second

	// maxAnswerHeader bounds the header of an application's answer, in bytes.
	maxAnswerHeader = 256 << 10
	// connBuffer is what headers are read and written through, in bytes. Bodies pass it by.
	connBuffer = 4 << 10
	// uploadBuffer is what bodies are copied to guests through, in bytes: the network stack
	// of a guest takes larger pieces faster.
	uploadBuffer = 256 << 10
)

// keepAlive finds out in a minute that a guest does not answer any more.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 9}

var (
	errGone    = errors.New("the sandbox has ended or was paused")
	errTooMany = errors.New("too many connections")
)

// guest is the way to one sandbox in one of its runs. Its connections are its own: what is
// left over of them ends with it. It is safe for concurrent use.
type guest struct {
	run       run
	transport *relay.Direct
	dialer    net.Dialer
	maxOpen   int
	// runs reports whether the run goes on.
	runs func() bool
	look func(ctx context.Context) // see Config
	// life ends with the run.
	life context.Context
	end  context.CancelFunc

	mu     sync.Mutex
	closed bool
	open   int // requests and tunnels
	conns  map[*conn]struct{}
}

func newGuest(r run, maxOpen int, answerTime time.Duration, runs func() bool) *guest {
	g := &guest{
		run: r, maxOpen: maxOpen, runs: runs, look: func(context.Context) {}, conns: map[*conn]struct{}{},
		dialer: net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive},
	}
	g.life, g.end = context.WithCancel(context.Background())
	h1 := new(http.Protocols)
	h1.SetHTTP1(true)
	rest := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return g.dialAddress(ctx, address)
		},
		Protocols:              h1,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerPort,
		IdleConnTimeout:        idleTimeout,
		ResponseHeaderTimeout:  answerTime,
		ExpectContinueTimeout:  continueTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
		ReadBufferSize:         connBuffer,
		WriteBufferSize:        connBuffer,
		DisableCompression:     true, // bodies pass as they are
	}
	g.transport = &relay.Direct{
		Dial: g.dialAddress, Rest: rest,
		MaxHeader: maxAnswerHeader, AnswerTime: answerTime, IdleTime: idleTimeout, MaxIdle: maxIdlePerPort,
	}
	return g
}

// dialAddress is dial for an address of which only the port counts.
func (g *guest) dialAddress(ctx context.Context, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	c, err := g.dial(ctx, uint16(n))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// dial connects to a port of the guest, whatever else a request names.
func (g *guest) dial(ctx context.Context, port uint16) (*conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.life, cancel)()
	address := netip.AddrPortFrom(g.run.address, port).String()
	for attempt := 1; ; attempt++ {
		c, err := g.dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			return g.adopt(c)
		}
		if !errors.Is(err, unix.ECONNREFUSED) || attempt == dialAttempts {
			return nil, g.explain(err)
		}
		if attempt == 1 {
			g.look(ctx)
			continue
		}
		select {
		case <-time.After(time.Duration(attempt-1) * dialBackoff):
		case <-ctx.Done():
			return nil, g.explain(ctx.Err())
		}
	}
}

// adopt keeps a new connection in mind. If the guest's run goes on now it did when the
// connection was made, so that is to this guest and not to another that got its address.
func (g *guest) adopt(c net.Conn) (*conn, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok || !g.runs() {
		relay.Reset(c)
		return nil, errGone
	}
	light, err := relay.NewLight(tcp)
	if err != nil {
		relay.Reset(c)
		return nil, err
	}
	own := &conn{Light: light, guest: g}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		relay.Reset(c)
		return nil, errGone
	}
	g.conns[own] = struct{}{}
	return own, nil
}

// explain says of what failed because of the guest's end that it did.
func (g *guest) explain(err error) error {
	if g.life.Err() != nil {
		return errGone
	}
	return err
}

// enter begins a request, which ends with leave.
func (g *guest) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return errGone
	case g.open >= g.maxOpen:
		return errTooMany
	}
	g.open++
	return nil
}

func (g *guest) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
}

// close resets every connection and lets none be made any more.
func (g *guest) close() {
	g.end()
	g.mu.Lock()
	g.closed = true
	conns := g.conns
	g.conns = map[*conn]struct{}{}
	g.mu.Unlock()
	for c := range conns {
		// Also to the guest, which may go on later, from its pause.
		relay.Reset(c.TCPConn)
	}
	g.transport.CloseIdleConnections()
}

// conn is a connection that its guest forgets when it is closed.
type conn struct {
	*relay.Light
	guest *guest
}

var uploadBuffers = sync.Pool{New: func() any { b := make([]byte, uploadBuffer); return &b }}
