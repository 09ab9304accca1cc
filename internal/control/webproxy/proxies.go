package webproxy

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// The headers in which proxies say who asked, and how.
const (
	headerFor    = "X-Forwarded-For"
	headerHost   = "X-Forwarded-Host"
	headerProto  = "X-Forwarded-Proto"
	headerPrefix = "X-Forwarded-Prefix"
)

const (
	schemePlain  = "http"
	schemeSecure = "https"
)

// proxies are where the proxies in front of us are. What any other client says in the name
// of one does not count.
type proxies []netip.Prefix

// believes reports whether a request comes from one of them.
func (p proxies) believes(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || len(p) == 0 {
		return false
	}
	ip := from.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(p, func(net netip.Prefix) bool { return net.Contains(ip) })
}

// scheme is how the client that began a request reached the first of us.
func (p proxies) scheme(r *http.Request) string {
	if p.believes(r) {
		switch said := strings.ToLower(last(r.Header[headerProto])); said {
		case schemePlain, schemeSecure:
			return said
		}
	}
	if r.TLS != nil {
		return schemeSecure
	}
	return schemePlain
}

// host is the host by which the client that began a request reached the first of us.
func (p proxies) host(r *http.Request) string {
	if p.believes(r) {
		if said := last(r.Header[headerHost]); said != "" {
			return said
		}
	}
	return r.Host
}

// forwarders are the headers in which some proxy or other says who asks, and for what, and
// that some application or other believes; beside those that begin with X-Forwarded.
var forwarders = map[string]bool{
	"forwarded": true, "x-real-ip": true, "x-scheme": true, "x-url-scheme": true, "x-client-ip": true, "x-cluster-client-ip": true,
	"true-client-ip": true, "cf-connecting-ip": true, "fastly-client-ip": true, "client-ip": true, "front-end-https": true,
	"x-original-url": true, "x-original-uri": true, "x-original-host": true, "x-original-forwarded-for": true, "x-rewrite-url": true,
	"x-host": true,
}

// isForwarder reports whether a header is one that a proxy would set. Many servers take an
// underscore in its name for a dash, or make both the same.
func isForwarder(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return name == "x-forwarded" || strings.HasPrefix(name, "x-forwarded-") || forwarders[name]
}

// describe says in the headers of a request that goes on who asks, how, and by which host.
// What in says of that counts when one of the proxies has said it, and is then added to.
func (p proxies) describe(header http.Header, in *http.Request) {
	for name := range header {
		if isForwarder(name) {
			delete(header, name)
		}
	}
	var chain []string
	if p.believes(in) {
		chain = slices.Clone(in.Header[headerFor])
	}
	if ip, _, err := net.SplitHostPort(in.RemoteAddr); err == nil {
		chain = append(chain, ip)
	}
	if len(chain) > 0 {
		header.Set(headerFor, strings.Join(chain, ", "))
	}
	header.Set(headerHost, p.host(in))
	header.Set(headerProto, p.scheme(in))
}

// last is the last element of a list in header lines, which is that of the nearest proxy.
func last(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	line := lines[len(lines)-1]
	return strings.TrimSpace(line[strings.LastIndexByte(line, ',')+1:])
}
