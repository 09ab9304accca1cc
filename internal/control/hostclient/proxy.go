package hostclient

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/relay"
)

const (
	// proxyIdleConns is how many idle connections for proxied requests are kept. A page of
	// a notebook opens dozens at once, and so do its next visitors.
	proxyIdleConns = 256
	// proxyIdleTimeout is far below the host agent's own, so that a connection that is used
	// again is never one that the agent is just closing.
	proxyIdleTimeout = 90 * time.Second
	// maxProxyHeader bounds the header of an answer, in bytes. The host agent's bound on
	// what a guest may send is below it.
	maxProxyHeader = 1 << 20
	// dialTimeout bounds a connection to the agent's socket.
	dialTimeout = 5 * time.Second
)

// ProxyTransport carries proxied requests to the host agent: HTTP/1.1 on connections of its
// own. It shares nothing with the transport of the RPC, whose one HTTP/2 connection has a
// flow control in which a download that stalls would hold up every terminal. It is safe for
// concurrent use.
type ProxyTransport struct {
	near   http.RoundTripper // nil: there is none
	direct relay.Direct
	dial   func(ctx context.Context) (net.Conn, error)
}

// NewProxyTransport returns a transport for the host agent that listens on a Unix socket.
// near, unless nil, is that agent itself, in this process: it gets requests without a body
// at hand, which by the socket would cost more than all else that is done for them.
func NewProxyTransport(socketPath string, near http.RoundTripper) *ProxyTransport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	dial := func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "unix", socketPath) }
	h1 := new(http.Protocols)
	h1.SetHTTP1(true)
	dialAny := func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }
	rest := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		Protocols:              h1,
		MaxIdleConns:           proxyIdleConns,
		MaxIdleConnsPerHost:    proxyIdleConns,
		IdleConnTimeout:        proxyIdleTimeout,
		MaxResponseHeaderBytes: maxProxyHeader,
		ExpectContinueTimeout:  continueTimeout,
		DisableCompression:     true, // bodies pass as they are
	}
	return &ProxyTransport{
		near:   near,
		dial:   dial,
		direct: relay.Direct{Dial: dialAny, Rest: rest, MaxHeader: maxProxyHeader, IdleTime: proxyIdleTimeout, MaxIdle: proxyIdleConns},
	}
}

// RoundTrip implements http.RoundTripper. It never follows a redirect.
func (t *ProxyTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.near != nil && relay.Bare(r) {
		return t.near.RoundTrip(r)
	}
	return t.direct.RoundTrip(r)
}

// Dial returns a new connection to the agent, for one that is about to be upgraded: no pool
// gets it back.
func (t *ProxyTransport) Dial(ctx context.Context) (net.Conn, error) { return t.dial(ctx) }

// Close closes the connections that nobody uses. What is under way goes on.
func (t *ProxyTransport) Close() { t.direct.CloseIdleConnections() }
