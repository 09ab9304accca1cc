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

// describe says in the headers of a request that goes on who asks, how, and by which host.
// What in says of that counts when one of the proxies has said it, and is then added to.
func (p proxies) describe(header http.Header, in *http.Request) {
	for name := range header {
		if strings.HasPrefix(name, "X-Forwarded-") {
			delete(header, name)
		}
	}
	header.Del("Forwarded")
	header.Del("X-Real-Ip")
	host := in.Host
	var chain []string
	if p.believes(in) {
		chain = slices.Clone(in.Header[headerFor])
		if said := last(in.Header[headerHost]); said != "" {
			host = said
		}
	}
	if ip, _, err := net.SplitHostPort(in.RemoteAddr); err == nil {
		chain = append(chain, ip)
	}
	if len(chain) > 0 {
		header.Set(headerFor, strings.Join(chain, ", "))
	}
	header.Set(headerHost, host)
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
