// Package relay is one hop of HTTP: it passes a request on and its answer back, each piece
// at once and nothing held whole, and connects two connections that have changed to another
// protocol. It must not know where requests go, who may send them, or what is in them.
package relay

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"
)

// ErrUnasked is that a server changed to a protocol that it was not asked for.
var ErrUnasked = errors.New("the server changed protocols without being asked")

// hopByHop are the headers that are about one connection and not about the message.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// DropHopByHop takes off a message what is about the connection that it came on.
func DropHopByHop(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

// hasToken reports whether a list of comma-separated tokens has one, in any case.
func hasToken(lines []string, token string) bool {
	return slices.ContainsFunc(lines, func(line string) bool {
		for s := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(textproto.TrimString(s), token) {
				return true
			}
		}
		return false
	})
}

// Outgoing returns the request that passes in on, with headers of its own. The caller says
// where it goes: URL and Host are still those of in.
func Outgoing(in *http.Request) *http.Request {
	out := in.WithContext(in.Context())
	out.RequestURI, out.Close, out.TransferEncoding = "", false, nil
	out.Header = in.Header.Clone()
	DropHopByHop(out.Header)
	if hasToken(in.Header["Te"], "trailers") {
		out.Header.Set("Te", "trailers") // all hops here pass trailers on
	}
	if _, named := out.Header["User-Agent"]; !named {
		out.Header["User-Agent"] = nil // otherwise Go's own is sent
	}
	if in.ContentLength == 0 {
		out.Body = http.NoBody
	}
	// What comes in the trailer of in is put into this very map when its body has ended.
	out.Trailer = in.Trailer
	return out
}

// past is a time that ends whatever waits for a connection.
var past = time.Unix(1, 0)

// Abort ends an answer that has been begun and will not be completed. It does not return.
func Abort(w http.ResponseWriter) {
	// The server waits for a read of the request's body that is under way, and that may
	// wait for a client which sends no more.
	_ = http.NewResponseController(w).SetReadDeadline(past) // on HTTP/2 the stream is reset anyway
	panic(http.ErrAbortHandler)
}

// Reset closes a connection so that its other end does not take that for a proper end.
func Reset(conn net.Conn) {
	under := conn
	if t, ok := conn.(*tls.Conn); ok {
		under = t.NetConn()
	}
	if tcp, ok := under.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0) // one that is closed has ended already
		_ = under.Close()    // before TLS, which would say goodbye
	}
	_ = conn.Close()
}
