package webproxy

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// The headers that say for which port of which sandbox a request is, and that it may go
// there.
const (
	sandboxHeader = "E2b-Sandbox-Id"
	portHeader    = "E2b-Sandbox-Port"
	tokenHeader   = "E2b-Traffic-Access-Token"
)

// gateHost begins the host name to which requests with routing headers are sent.
const gateHost = "sandbox"

// target is where a request is to go.
type target struct {
	webroute.Target
	// rest is the path in the application's own space and the query, byte for byte as they
	// came.
	rest string
	// prefix is the path under which the client sees the application, empty when that is the
	// root of an origin.
	prefix string
	// whole is whether the application knows of the prefix, so that rest begins with it.
	whole bool
	// byHeader is whether headers named the target, and not the address.
	byHeader bool
}

// byName finds a target in a request's host name or in its routing headers. found is false
// when neither names one.
func (e *Edge) byName(r *http.Request) (to target, found bool, err error) {
	rest, err := rawTarget(r)
	if err != nil {
		return target{}, false, err
	}
	named, ours, err := webroute.ParseHost(r.Host, e.domain)
	if err != nil {
		return target{}, false, err
	}
	if ours {
		return target{Target: named, rest: rest}, true, nil
	}
	id, port := r.Header.Values(sandboxHeader), r.Header.Values(portHeader)
	if len(id)+len(port) == 0 || !isGate(r.Host) {
		return target{}, false, nil
	}
	if len(id) != 1 || len(port) != 1 {
		return target{}, false, fault.New(fault.InvalidRequest, "missing header: send %s and %s, each once", sandboxHeader, portHeader)
	}
	// The SDKs of old append the id of a client to that of the sandbox.
	name, _, _ := strings.Cut(id[0], "-")
	named, err = webroute.Parse(port[0], name)
	return target{Target: named, rest: rest, byHeader: true}, err == nil, err
}

// byPath finds a target in a request's path.
func byPath(r *http.Request) (target, error) {
	raw, err := rawTarget(r)
	if err != nil {
		return target{}, err
	}
	path, query, asked := strings.Cut(raw, "?")
	to := target{whole: webroute.IsWhole(path)}
	if to.whole {
		to.Target, to.prefix, err = webroute.SplitWhole(path)
		to.rest = path
	} else {
		to.Target, to.rest, err = webroute.Split(path)
		to.prefix = to.Prefix()
	}
	if err != nil || to.rest == "" {
		return to, err
	}
	if asked {
		to.rest += "?" + query
	}
	return to, nil
}

// seen is the path of the client's origin at which it sees what is at rest.
func (t target) seen(rest string) string {
	if t.whole {
		return rest
	}
	return t.prefix + rest
}

// isGate reports whether a Host is one to which requests with routing headers may be sent.
func isGate(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if first, _, more := strings.Cut(name, "."); name == "localhost" || more && first == gateHost {
		return true
	}
	_, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil
}

// rawTarget is the path and the query of a request as the client wrote them, from the first
// slash on.
func rawTarget(r *http.Request) (string, error) {
	raw := r.RequestURI
	if strings.HasPrefix(raw, "/") {
		return raw, nil
	}
	// A proxy is asked with the whole address. Its host is in r.Host, which alone decides.
	if _, after, ok := strings.Cut(raw, "://"); ok {
		i := strings.IndexAny(after, "/?")
		switch {
		case i < 0:
			return "/", nil
		case after[i] == '?':
			return "/" + after[i:], nil
		}
		return after[i:], nil
	}
	if r.Method == http.MethodConnect || raw == "*" {
		return "/", nil
	}
	return "", fault.New(fault.InvalidRequest, "the request has no path")
}

// rawQuery is the query of a request with its question mark, as it came.
func rawQuery(r *http.Request) string {
	if _, query, ok := strings.Cut(r.RequestURI, "?"); ok {
		return "?" + query
	}
	return ""
}

// clean is the headers of a request without what is for us alone.
func (t target) clean(header http.Header) http.Header {
	out := header.Clone()
	out.Del(tokenHeader)
	if cookies, ok := out["Cookie"]; ok {
		out["Cookie"] = withoutOwn(cookies)
		if len(out["Cookie"]) == 0 {
			delete(out, "Cookie")
		}
	}
	return out
}

// address says where ports of sandboxes are on the web.
type address struct {
	scheme string
	domain string // with a port, unless that is the scheme's own; empty: there are no names
	paths  string // scheme, host and port of the listener for paths; empty: there is none
}

// SetAddress says where the listeners of Front and Paths are found from outside: the scheme
// of both, the port that goes with the domain's names, empty for the scheme's own, and the
// origin of the paths, empty when they are not served. It comes before the first request.
func (e *Edge) SetAddress(scheme, port, paths string) {
	e.address.scheme, e.address.paths = scheme, paths
	if _, _, err := net.SplitHostPort(e.address.domain); err != nil && port != "" && e.domain != "" {
		e.address.domain = net.JoinHostPort(e.address.domain, port)
	}
}

// URL is the address of a port of a sandbox, empty when it has none.
func (e *Edge) URL(id string, port int) string {
	t := webroute.Target{Sandbox: id, Port: uint16(port)}
	switch {
	case e.address.domain != "":
		return (&url.URL{Scheme: e.address.scheme, Host: strconv.Itoa(port) + "-" + id + "." + e.address.domain, Path: "/"}).String()
	case e.address.paths != "":
		return e.address.paths + t.Prefix() + "/"
	}
	return ""
}

// Patterns are the addresses of all ports, in which PORT and SANDBOX stand for one: by name
// and by path, as far as there are such.
func (e *Edge) Patterns() []string {
	var all []string
	if e.address.domain != "" {
		all = append(all, e.address.scheme+"://PORT-SANDBOX."+e.address.domain+"/")
	}
	if e.address.paths != "" {
		all = append(all, e.address.paths+"/proxy/SANDBOX/PORT/")
	}
	return all
}

// domainName is a domain without the port that it may have.
func domainName(domain string) string {
	if host, _, err := net.SplitHostPort(domain); err == nil {
		return host
	}
	return domain
}
