package webproxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/relay"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// upgradeTime bounds how long an application may take to agree to another protocol.
const upgradeTime = 60 * time.Second

// headerForwardedHost holds the Host that the client asked for.
const headerForwardedHost = "X-Forwarded-Host"

// exchange is a request on its way.
type exchange struct {
	to    webroute.Target
	guest *guest
	app   webroute.App
	out   *http.Request
}

// ServeHTTP implements http.Handler for the paths that webroute.IsProxied knows.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect { // it is for proxies of another kind
		fault.WriteHTTP(w, fault.New(fault.MethodNotAllowed, "CONNECT is not possible here; send requests to the address of the port"))
		return
	}
	x, refuse := p.enter(r)
	if refuse != nil {
		refuse(w)
		return
	}
	if protocol := relay.UpgradeProtocol(r); protocol != "" && x.to.Port != webroute.EnvdPort {
		p.upgrade(w, r, x, protocol)
		return
	}
	defer x.guest.leave()
	if err := relay.Forward(w, x.out, x.guest.transport, x.finish); err != nil {
		p.fail(w, r, x, err)
	}
}

// enter finds out where a request goes, and begins it there; who has it ends it by leaving
// the guest. When it goes nowhere, refuse is what answers it.
func (p *Proxy) enter(r *http.Request) (_ *exchange, refuse func(http.ResponseWriter)) {
	problem := func(p webroute.Problem) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { p.Write(w, r) }
	}
	path, query, asked := rawPath(r)
	to, rest, err := webroute.Split(path)
	if err != nil {
		return nil, func(w http.ResponseWriter) { fault.WriteHTTP(w, err) }
	}
	if to.Port == webroute.EnvdPort && webroute.IsControl(rest) {
		return nil, problem(webroute.NoPath(rest))
	}
	if rest == "" {
		rest = "/"
	}
	g, refusal := p.guest(to)
	if refusal != nil {
		return nil, problem(*refusal)
	}
	if err := g.enter(); err != nil {
		return nil, problem(why(to, err))
	}
	x := &exchange{to: to, guest: g, out: relay.Outgoing(r)}
	x.app = webroute.App{Target: to, Host: r.Host, Original: r.Header.Get(headerForwardedHost), Address: g.run.address, Path: rest}
	x.out.URL = x.address(rest, query, asked)
	return x, nil
}

// rawPath is the path of a request as its client wrote it, and the query, asked for with or
// without anything in it.
func rawPath(r *http.Request) (path, query string, asked bool) {
	raw := r.RequestURI
	if !strings.HasPrefix(raw, "/") { // a whole URL, of which nothing but the path counts
		raw = r.URL.RequestURI()
	}
	return strings.Cut(raw, "?")
}

// address is where a request goes. Its path and query are those of the client, byte for
// byte; only of a path that begins with two slashes, which as an opaque address would be a
// host, characters that have no place in a path get encoded.
func (x *exchange) address(rest, query string, asked bool) *url.URL {
	u := &url.URL{
		Scheme: "http", Host: net.JoinHostPort(x.guest.run.address.String(), strconv.Itoa(int(x.to.Port))),
		RawQuery: query, ForceQuery: asked,
	}
	if !strings.HasPrefix(rest, "//") {
		u.Opaque = rest
		return u
	}
	u.RawPath, u.Path = rest, rest
	if plain, err := url.PathUnescape(rest); err == nil {
		u.Path = plain
	}
	return u
}

// finish makes the header of an answer that which the next hop is to get.
func (x *exchange) finish(resp *http.Response) error {
	resp.Header.Del(webroute.HeaderProblem)
	webroute.Rewrite(resp.Header, x.app)
	return nil
}

// upgrade passes on a request that asks for another protocol. The guest is left when what
// comes of it has ended.
func (p *Proxy) upgrade(w http.ResponseWriter, r *http.Request, x *exchange, protocol string) {
	kept := false
	defer func() {
		if !kept {
			x.guest.leave()
		}
	}()
	ctx, cancel := context.WithTimeout(r.Context(), upgradeTime)
	defer cancel()
	c, err := x.guest.dial(ctx, x.to.Port)
	if err != nil {
		p.fail(w, r, x, err)
		return
	}
	asked, err := relay.Ask(ctx, c, x.out, protocol, maxAnswerHeader)
	if err != nil {
		p.fail(w, r, x, x.guest.explain(err))
		return
	}
	if err := x.finish(asked.Response); err != nil {
		p.fail(w, r, x, err)
		return
	}
	if asked.Response.StatusCode != http.StatusSwitchingProtocols {
		asked.Refused(r.Context(), w)
		return
	}
	tunnel, err := asked.Accept(w)
	if err != nil {
		p.cfg.Log.DebugContext(r.Context(), "connect an upgraded request", "sandbox", x.to.Sandbox, "port", x.to.Port, "error", err)
		return
	}
	kept = true
	tunnel.Run(nil, x.guest.leave)
}

// fail answers a request of which nothing has been answered.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, x *exchange, err error) {
	if r.Context().Err() != nil {
		relay.Abort(w) // the client has gone
	}
	p.failure(r, x, err).Write(w, r)
}

// failure is the problem of a request that got no answer.
func (p *Proxy) failure(r *http.Request, x *exchange, err error) webroute.Problem {
	// A request that ran into the end of its sandbox is told of that, not of its cause.
	if x.guest.life.Err() != nil {
		err = errGone
	}
	p.cfg.Log.DebugContext(r.Context(), "proxy a request", "sandbox", x.to.Sandbox, "port", x.to.Port, "error", err)
	return why(x.to, err)
}

// why is the problem that an error is to a client.
func why(to webroute.Target, err error) webroute.Problem {
	var late interface{ Timeout() bool }
	switch {
	case errors.Is(err, errGone):
		return webroute.NotFound(to)
	case errors.Is(err, errTooMany):
		return webroute.TooMany(to, "The sandbox has too many open connections")
	case errors.Is(err, unix.ECONNREFUSED):
		return webroute.Closed(to)
	case errors.As(err, &late) && late.Timeout():
		return webroute.Silent(to)
	}
	return webroute.Broken(to)
}
