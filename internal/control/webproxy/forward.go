package webproxy

import (
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/wrenn-sandbox/wrenn/internal/relay"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// errCut is that a sandbox ended, or was paused, under a request.
var errCut = errors.New("the sandbox ended or was paused")

// errPaused is that the host says that a sandbox is paused.
var errPaused = errors.New("the host says that the sandbox is paused")

// forward passes a request on, and its answer back.
func (e *Edge) forward(w http.ResponseWriter, in *http.Request, x *exchange) {
	out := x.direct(in)
	out.Body = x.countUpload(out.Body)
	err := relay.Forward(&answerWriter{w, x}, out, e.host, func(resp *http.Response) error {
		if x.isPaused(resp.Header) {
			return errPaused
		}
		x.note(resp.StatusCode)
		x.finish(resp.Header)
		resp.Body = &countedBody{ReadCloser: resp.Body, count: &x.visit.guest.stats.sent, moved: x.moved}
		return nil
	})
	switch {
	case err == nil:
		finishTrailer(w.Header())
	case !x.paused:
		e.failed(w, in, x, err)
	}
}

// failed answers a request that got no answer.
func (e *Edge) failed(w http.ResponseWriter, in *http.Request, x *exchange, err error) {
	p := e.hostProblem(in, x.to.Target, err)
	x.note(p.Status)
	p.Write(w, in)
}

// direct is the request for the host agent that in is here.
func (x *exchange) direct(in *http.Request) *http.Request {
	out := relay.Outgoing(in)
	// As an opaque whole, the path and the query arrive as the client wrote them.
	out.URL = &url.URL{Scheme: "http", Host: "host", Opaque: x.to.Prefix() + x.to.rest}
	x.forwarded(out, in)
	if x.web.MaskHost != "" {
		x.mask(out, in)
	}
	return out
}

// forwarded says to the application who asks and how.
func (x *exchange) forwarded(out, in *http.Request) {
	x.edge.proxies.describe(out.Header, in)
	if x.to.prefix != "" && !x.to.whole {
		out.Header.Set(headerPrefix, x.to.prefix)
	}
}

// mask gives the application the Host header that the sandbox's owner chose. An Origin that
// is the page's own stays the page's own.
func (x *exchange) mask(out, in *http.Request) {
	out.Host = webroute.MaskHost(x.web.MaskHost, x.to.Port)
	if origin := out.Header.Get("Origin"); origin != "" {
		out.Header.Set("Origin", webroute.MaskOrigin(origin, in.Host, out.Host))
	}
}

// countUpload counts the body of a request.
func (x *exchange) countUpload(body io.ReadCloser) io.ReadCloser {
	if body == nil || body == http.NoBody {
		return body
	}
	return &countedBody{ReadCloser: body, count: &x.visit.guest.stats.received, moved: x.moved}
}

// countedBody is a body whose bytes are counted as they pass.
type countedBody struct {
	io.ReadCloser
	count *counter
	moved func()
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.count.Add(int64(n))
		b.moved()
	}
	return n, err
}
