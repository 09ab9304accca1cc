package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/control/httpapi"
	"github.com/wrenn-sandbox/wrenn/internal/control/webproxy"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// noProxyListen is the address of --proxy-listen that stands for none.
const noProxyListen = "none"

// pathListener is the listener for ports by path; its zero value is none.
type pathListener struct{ net.Listener }

// Close implements io.Closer, for none as well.
func (l pathListener) Close() error {
	if l.Listener == nil {
		return nil
	}
	return l.Listener.Close()
}

// listenForPaths opens the listener for ports of sandboxes by path. Where nobody has named
// an address and the one beside the API's is taken, any free port will do: every link that
// is made names it.
func listenForPaths(ctx context.Context, o upOptions, api net.Addr) (pathListener, error) {
	switch o.proxyListen {
	case noProxyListen:
		return pathListener{}, nil
	case "":
	default:
		l, err := listen(ctx, o.proxyListen, busyTime)
		if err != nil {
			return pathListener{}, fault.New(fault.InvalidRequest, "cannot listen on %s (%v); choose another address with --proxy-listen", o.proxyListen, errors.Unwrap(err))
		}
		return pathListener{l}, nil
	}
	host, port, err := net.SplitHostPort(api.String())
	if err != nil {
		return pathListener{}, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return pathListener{}, err
	}
	l, err := listen(ctx, net.JoinHostPort(host, strconv.Itoa(n+1)), besideTime)
	if err != nil {
		l, err = listen(ctx, net.JoinHostPort(host, "0"), 0)
	}
	if err != nil {
		return pathListener{}, fault.New(fault.InvalidRequest, "cannot listen beside %s (%v); choose an address with --proxy-listen", api, errors.Unwrap(err))
	}
	return pathListener{l}, nil
}

// origin is how clients begin the addresses of a listener. A certificate is for a name.
func (o *upOptions) origin(addr net.Addr) string {
	at := reachable(addr)
	if _, port, err := net.SplitHostPort(at); err == nil && o.tls.enabled() && o.domain != "" {
		at = net.JoinHostPort(hostOf(o.domain), port)
	}
	return o.tls.scheme() + "://" + at
}

// The schemes of addresses.
const (
	schemePlain  = "http"
	schemeSecure = "https"
)

// resolveOutside takes apart what the flags say of how clients see the listeners.
func (o *upOptions) resolveOutside() error {
	if scheme, name, named := strings.Cut(o.domain, "://"); named {
		o.domainScheme, o.domain = strings.ToLower(scheme), strings.TrimSuffix(name, "/")
		if o.domainScheme != schemePlain && o.domainScheme != schemeSecure || o.domain == "" || strings.ContainsAny(o.domain, "/?#@") {
			return fault.New(fault.InvalidRequest, "--domain is %s://%s; want a name such as sandboxes.example.com, with https:// before it when clients use that", scheme, name)
		}
	}
	if o.proxyURL == "" {
		return nil
	}
	at, err := url.Parse(o.proxyURL)
	if err != nil || at.Scheme != schemePlain && at.Scheme != schemeSecure || at.Host == "" || strings.Trim(at.Path, "/") != "" || at.RawQuery != "" || at.User != nil {
		return fault.New(fault.InvalidRequest, "--proxy-url is %q; want the address without a path, such as https://ports.example.com", o.proxyURL)
	}
	if o.proxyListen == noProxyListen {
		return fault.New(fault.InvalidRequest, "--proxy-url is where clients see --proxy-listen, which is none; leave one of them out")
	}
	o.proxyURL = at.Scheme + "://" + at.Host
	return nil
}

// outside is how clients begin the addresses of the domain's names, with which port (empty:
// the scheme's own), and those of ports by path (empty: there are none).
func (o *upOptions) outside(api net.Addr, paths pathListener) (scheme, port, origin string, err error) {
	if scheme = o.domainScheme; scheme == "" {
		scheme = o.tls.scheme()
		if _, port, err = net.SplitHostPort(api.String()); err != nil {
			return "", "", "", err
		}
		if port == o.tls.defaultPort() {
			port = ""
		}
	}
	switch {
	case paths.Listener == nil:
	case o.proxyURL != "":
		origin = o.proxyURL
	default:
		origin = o.origin(paths.Addr())
	}
	return scheme, port, origin, nil
}

// webServers are the servers that clients reach.
type webServers struct {
	servers []*http.Server
	// crowd bounds the connections of all of them.
	crowd *webproxy.Crowd
	// served gets an error when one of them cannot go on.
	served chan error
	// stopTLS ends what renews certificates.
	stopTLS func()
}

// serveWeb serves the API, with the ports of sandboxes by name, and those by path.
func serveWeb(ctx context.Context, o upOptions, control *controlFloor, api net.Listener, paths pathListener, log *slog.Logger) (*webServers, error) {
	scheme, port, origin, err := o.outside(api.Addr(), paths)
	if err != nil {
		return nil, err
	}
	control.edge.SetAddress(scheme, port, origin)

	const listeners = 2
	w := &webServers{
		crowd: webproxy.NewCrowd(o.budget.connections), served: make(chan error, listeners), stopTLS: func() {},
	}
	var config *tls.Config
	switch {
	case o.tls.dns.enabled():
		config, w.stopTLS = o.tls.wildcardConfig(ctx, o.dataDir, hostOf(o.domain), log)
	case o.tls.acme:
		n := 0
		if tcp, ok := api.Addr().(*net.TCPAddr); ok {
			n = tcp.Port
		}
		config, w.stopTLS = o.tls.acmeConfig(o.dataDir, n, control.edge.Certificates(o.tls.acmeNames), log)
	case o.tls.enabled():
		if config, err = o.tls.config(log); err != nil {
			return nil, err
		}
	}
	w.serve(control.edge.Front(control.api), api, config, log)
	if paths.Listener != nil {
		w.serve(control.edge.Paths(), paths, config, log)
	}
	return w, nil
}

func (w *webServers) serve(h http.Handler, l net.Listener, config *tls.Config, log *slog.Logger) {
	server := newHTTPServer(h, log)
	server.ConnContext = httpapi.ConnContext
	server.TLSConfig = config
	w.crowd.Guard(server)
	l = w.crowd.Listen(l)
	w.servers = append(w.servers, server)
	go func() {
		if config != nil {
			w.served <- server.ServeTLS(l, "", "")
			return
		}
		w.served <- server.Serve(l)
	}()
}

// shutdown stops all of them.
func (w *webServers) shutdown(ctx context.Context) error {
	var errs []error
	for _, s := range w.servers {
		errs = append(errs, shutdown(ctx, s))
	}
	w.stopTLS()
	return errors.Join(errs...)
}
