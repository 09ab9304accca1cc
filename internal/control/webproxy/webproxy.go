// Package webproxy lets browsers and other HTTP clients reach the ports of sandboxes: it
// finds out which port of which sandbox a request is for, whether it may go there, wakes a
// sandbox that asked for it, and passes the request on to the host agent, which knows the
// way to the guest.
//
// It must not know SQL, the host's RPC or addresses of guests. What it passes on goes to
// the host agent and nowhere else, whatever the request says.
package webproxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

const (
	// DefaultMaxConnections is how many requests and upgraded connections of one sandbox
	// are open at once.
	DefaultMaxConnections = 4096
	// maxGuests is how many sandboxes are remembered that nobody talks to right now.
	maxGuests = 4096
)

// Sandboxes is what decides about requests, as sandbox.Traffic has it.
type Sandboxes interface {
	Find(ctx context.Context, id string) (sandbox.Sandbox, error)
	Begin(id string) (end func(), ok bool)
	Touch(id string)
	Wake(ctx context.Context, id string) error
	Refresh(ctx context.Context, id string) error
	Follow(ctx context.Context, each func(id string, status sandbox.Status))
}

// Host is the way to the host agent, as hostclient.ProxyTransport has it.
type Host interface {
	http.RoundTripper
	// Dial returns a connection that is the caller's alone.
	Dial(ctx context.Context) (net.Conn, error)
}

// Config is what an Edge works with.
type Config struct {
	Sandboxes Sandboxes
	Host      Host
	// Domain is under what names sandboxes appear, such as localhost; it may have a port,
	// when that is not the listener's. Empty: there are no such names.
	Domain string
	// MaxConnections is how many requests and upgraded connections of one sandbox may be
	// open at once; 0: DefaultMaxConnections.
	MaxConnections int
	// MaxVisits is how many may be open at once to all sandboxes together, of which one gets
	// half at most; 0: there is no bound.
	MaxVisits int
	// RequestRate is how many requests a second one sandbox gets; 0: as many as come.
	RequestRate float64
	// TrustedProxies is where the proxies in front of us are, whose X-Forwarded-For, -Proto
	// and -Host are believed.
	TrustedProxies []netip.Prefix
	Log            *slog.Logger
}

// Edge lets requests through to ports of sandboxes. Let Run run beside it. It is safe for
// concurrent use.
type Edge struct {
	sandboxes Sandboxes
	host      Host
	domain    string
	guests    *guests
	links     *links
	address   address
	proxies   proxies
	log       *slog.Logger
}

// New returns an edge.
func New(cfg Config) *Edge {
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	return &Edge{
		sandboxes: cfg.Sandboxes, host: cfg.Host, domain: domainName(cfg.Domain),
		guests: newGuests(cfg.MaxConnections, cfg.RequestRate, &room{max: int64(cfg.MaxVisits)}), links: newLinks(),
		address: address{scheme: schemePlain, domain: cfg.Domain}, proxies: cfg.TrustedProxies, log: cfg.Log,
	}
}

// Run follows what becomes of sandboxes, until ctx ends.
func (e *Edge) Run(ctx context.Context) {
	e.sandboxes.Follow(ctx, func(id string, status sandbox.Status) {
		switch status {
		case sandbox.Pausing, sandbox.Resuming, sandbox.Running, sandbox.Starting, sandbox.Pending:
			// Requests that are under way may end. What is known of the sandbox is asked anew.
			e.guests.forget(id)
		case sandbox.Paused:
			e.guests.reset(id)
		default:
			e.EvictProxy(id)
		}
	})
}

// EvictProxy resets every connection to a sandbox that has ended, and forgets it.
func (e *Edge) EvictProxy(id string) {
	e.guests.reset(id)
	e.guests.remove(id)
}

// Close resets all connections.
func (e *Edge) Close() { e.guests.resetAll() }

// Front is the handler of a listener that the API shares: requests for a sandbox, by their
// host name or the routing headers, go there and all others to next.
func (e *Edge) Front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, found, err := e.byName(r)
		switch {
		case err != nil:
			refuse(w, r, badRoute(err))
		case found:
			e.serve(w, r, to)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// Paths is the handler of a listener of its own, for where names cannot have subdomains: a
// port is at /proxy/{sandbox}/{port}/, and at /absproxy/{sandbox}/{port}/ for an application
// that was told so and wants to get its paths whole. All pages there are of one origin, so nothing but
// sandboxes is served there.
func (e *Edge) Paths() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, found, err := e.byName(r)
		if err == nil && !found {
			to, err = byPath(r)
		}
		switch {
		case err != nil:
			refuse(w, r, badRoute(err))
		case to.rest == "":
			// Relative links of a page without the slash would lead out of the prefix.
			redirect(w, to.prefix+"/"+rawQuery(r))
		default:
			e.serve(w, r, to)
		}
	})
}

// now is the time; it has a name of its own so that it is one decision.
func now() time.Time { return time.Now() }
