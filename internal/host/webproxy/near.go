package webproxy

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net/http"

	"github.com/wrenn-sandbox/wrenn/internal/relay"
)

// RoundTrip implements http.RoundTripper, for a control floor in the same process: it does
// with a request what ServeHTTP does with one that came by the socket, in the goroutine of
// the caller. To write a request to a socket, wake who reads it, and the same for the
// answer, takes longer than all else that this floor does for a small one. A request for
// another protocol must come by the socket.
func (p *Proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	// As a server would have read it.
	in := r.WithContext(r.Context())
	in.RequestURI, in.Host = r.URL.RequestURI(), cmp.Or(r.Host, r.URL.Host)
	x, refuse := p.enter(in)
	if refuse != nil {
		return written(in, refuse), nil
	}
	resp, err := relay.Fetch(x.out, x.guest.transport, x.finish)
	if err == nil {
		relay.WhenClosed(resp, x.guest.leave)
		return resp, nil
	}
	x.guest.leave()
	if cause := context.Cause(in.Context()); cause != nil {
		return nil, cause // the client has gone
	}
	return written(in, func(w http.ResponseWriter) { p.failure(in, x, err).Write(w, in) }), nil
}

// record is an answer of our own, which is short.
type record struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (w *record) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *record) WriteHeader(status int) { w.status = status }

// Write implements http.ResponseWriter.
func (w *record) Write(p []byte) (int, error) { return w.body.Write(p) }

// written is the answer that a function writes.
func written(r *http.Request, write func(http.ResponseWriter)) *http.Response {
	w := &record{header: http.Header{}, status: http.StatusOK}
	write(w)
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, ContentLength: int64(w.body.Len()), Body: io.NopCloser(&w.body), Request: r,
	}
}
