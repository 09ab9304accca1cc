package relay

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxStatus is the last one that HTTP has room for.
const maxStatus = 999

const (
	// smallBuffer is what a body is read through that comes a little at a time, as events
	// do, and largeBuffer what one that fills the small one is read through, in bytes. A
	// body that is merely open holds a small one.
	smallBuffer = 4 << 10
	largeBuffer = 256 << 10

	// headerDelay is how long the header of an answer waits for the beginning of its body,
	// with which it makes one packet instead of two.
	headerDelay = 500 * time.Microsecond
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
)

// Forward sends out through a transport and passes the answer to w when edit has changed
// its header. As long as it returns an error, nothing has been written to w. When an answer
// that has been begun breaks off, w is aborted by a panic, as http.ErrAbortHandler has it,
// so that what was sent does not look complete.
func Forward(w http.ResponseWriter, out *http.Request, via http.RoundTripper, edit func(*http.Response) error) error {
	// An application may answer while it is still being sent to. HTTP/2 needs not to be asked.
	_ = http.NewResponseController(w).EnableFullDuplex()
	if out.Body != nil && out.Body != http.NoBody {
		body := &lentBody{ReadCloser: out.Body}
		out.Body = body
		defer body.takeBack()
	}
	inform := &informer{w: w, expects: out.Header.Get("Expect") != ""}
	trace := &httptrace.ClientTrace{Got1xxResponse: inform.pass}
	if !out.ProtoAtLeast(1, 1) {
		trace.Got1xxResponse = nil // clients of HTTP/1.0 know no such answers
	}
	var begun bool
	resp, err := Fetch(out.WithContext(httptrace.WithClientTrace(out.Context(), trace)), via, func(resp *http.Response) error {
		inform.end()
		begun = bodyHasBegun(resp.Body)
		return edit(resp)
	})
	inform.end()
	if err != nil {
		return err
	}
	answer(w, resp, begun)
	return nil
}

// Fetch sends out through a transport and returns the answer when edit has changed its
// header, from which that is gone which was about the connection alone.
func Fetch(out *http.Request, via http.RoundTripper, edit func(*http.Response) error) (*http.Response, error) {
	resp, err := via.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		err = ErrUnasked
	case resp.StatusCode < http.StatusOK || resp.StatusCode > maxStatus:
		err = fmt.Errorf("the server answered with status %d", resp.StatusCode)
	default:
		DropHopByHop(resp.Header)
		err = edit(resp)
	}
	if err != nil {
		_ = resp.Body.Close() // nobody gets it
		return nil, err
	}
	return resp, nil
}

// WhenClosed has ended called, once, when the body of an answer is closed.
func WhenClosed(resp *http.Response, ended func()) {
	resp.Body = &endingBody{ReadCloser: resp.Body, ended: ended}
}

// endingBody is a body that tells of its end.
type endingBody struct {
	io.ReadCloser
	once  sync.Once
	ended func()
}

// Close implements io.Closer.
func (b *endingBody) Close() error {
	defer b.once.Do(b.ended)
	return b.ReadCloser.Close()
}

// bodyHasBegun says whether the first read of a body is known not to wait.
func bodyHasBegun(body io.Reader) bool {
	if e, ok := body.(*endingBody); ok {
		body = e.ReadCloser
	}
	b, direct := body.(*directBody)
	return body == http.NoBody || direct && b.begun()
}

// answer passes a whole answer on; its header is as the client is to see it. begun is whether
// some of its body is there already.
func answer(w http.ResponseWriter, resp *http.Response, begun bool) {
	defer resp.Body.Close()
	h := w.Header()
	for name, values := range resp.Header {
		h[name] = values
	}
	if _, named := resp.Header["Content-Type"]; !named {
		h["Content-Type"] = nil // otherwise the server guesses one
	}
	announced := make([]string, 0, len(resp.Trailer))
	for name := range resp.Trailer {
		announced = append(announced, name)
	}
	if len(announced) > 0 {
		h.Set("Trailer", strings.Join(announced, ", "))
	}
	w.WriteHeader(resp.StatusCode)
	if err := copyBody(w, resp.Body, begun); err != nil {
		// The header was true, also when nothing of the body came: who sees no answer at all
		// asks again.
		_ = http.NewResponseController(w).Flush()
		Abort(w)
	}
	passTrailers(w, resp, announced)
}

// passTrailers passes on what came after the body, announced or not.
func passTrailers(w http.ResponseWriter, resp *http.Response, announced []string) {
	if len(resp.Trailer) == 0 {
		return
	}
	// So that the server does not make a length of a short body, after which no trailer comes.
	_ = http.NewResponseController(w).Flush()
	prefix := http.TrailerPrefix
	if len(resp.Trailer) == len(announced) {
		prefix = ""
	}
	for name, values := range resp.Trailer {
		w.Header()[prefix+name] = values
	}
}

// copyBody copies a body and lets every piece of it go at once, and the header with the first
// of them.
func copyBody(w http.ResponseWriter, body io.Reader, begun bool) error {
	f := &flusher{flush: http.NewResponseController(w).Flush}
	if !begun {
		// The first flush, if anything is slow to come, is the timer's. A timer as short as
		// this wakes the whole runtime up.
		timer := time.AfterFunc(headerDelay, f.header)
		defer timer.Stop()
		defer f.end()
	}
	pool, size := &smallBuffers, smallBuffer
	buf := pool.Get().(*[]byte)
	defer func() { pool.Put(buf) }()
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if err := f.pass(w, (*buf)[:n], errors.Is(err, io.EOF)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case n == size && size == smallBuffer:
			pool.Put(buf)
			pool, size = &largeBuffers, largeBuffer
			buf = pool.Get().(*[]byte)
		case n < smallBuffer && size == largeBuffer:
			pool.Put(buf)
			pool, size = &smallBuffers, smallBuffer
			buf = pool.Get().(*[]byte)
		}
	}
}

// flusher keeps the timer's flush of a header apart from the writes of the body.
type flusher struct {
	flush func() error

	mu   sync.Mutex
	done bool // the header has been sent
}

func (f *flusher) header() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done {
		f.done = true
		_ = f.flush() // the next write says what is wrong
	}
}

// pass writes a piece. The last one is flushed when the handler ends.
func (f *flusher) pass(w io.Writer, p []byte, last bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = true
	if _, err := w.Write(p); err != nil || last {
		return err
	}
	return f.flush()
}

// end lets the timer do nothing any more; it must not touch an answer that has ended.
func (f *flusher) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = true
}

// informer passes informational answers (1xx) on until the real one is there.
type informer struct {
	w       http.ResponseWriter
	expects bool

	mu    sync.Mutex
	ended bool
}

func (i *informer) pass(code int, h textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	// The server itself says 100 when the transport begins to read the body, which is when
	// the other end has said so: passed on it would come twice. Nothing else may be written
	// while it could be saying that.
	if i.ended || i.expects || code == http.StatusContinue {
		return nil
	}
	header := i.w.Header()
	for name, values := range h {
		header[name] = values
	}
	DropHopByHop(header)
	i.w.WriteHeader(code)
	clear(header)
	return nil
}

func (i *informer) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
}

// errBodyGone is what is read of a request's body after its handler has ended.
var errBodyGone = errors.New("the request has ended")

// lentBody is the body of a request while a transport reads it. The transport may go on
// after it has answered, and the body is the server's again when the handler returns. Nor
// may the transport close it: that would wait for what a client has not sent yet.
type lentBody struct {
	io.ReadCloser
	back atomic.Bool
}

func (b *lentBody) Read(p []byte) (int, error) {
	if b.back.Load() {
		return 0, errBodyGone
	}
	return b.ReadCloser.Read(p)
}

// Close implements io.Closer.
func (b *lentBody) Close() error {
	b.takeBack()
	return nil
}

func (b *lentBody) takeBack() { b.back.Store(true) }
