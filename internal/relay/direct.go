package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Direct carries requests that have no body, on connections of its own, in the goroutine of
// the caller. http.Transport has two goroutines for every connection; to wake one after the
// other costs more than everything else that passing a small request on does. Requests that
// it is not made for go to Rest. It is safe for concurrent use.
type Direct struct {
	// Dial makes a connection to a host and port.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Rest carries all other requests.
	Rest http.RoundTripper
	// MaxHeader bounds the header of an answer, in bytes.
	MaxHeader int64
	// AnswerTime bounds how long an answer may take to begin; 0: for ever.
	AnswerTime time.Duration
	// IdleTime is how long a connection is kept that nobody uses, and MaxIdle how many to one
	// address.
	IdleTime time.Duration
	MaxIdle  int

	mu   sync.Mutex
	idle map[string][]*directConn // the latest last
}

// directConn is a connection and what its answers are read through.
type directConn struct {
	net.Conn
	owner   *Direct
	address string
	limit   io.LimitedReader
	reader  *bufio.Reader
	expiry  *time.Timer // nil until it was idle
}

// directBuffer is what headers are read and written through, in bytes. Large bodies pass it by.
const directBuffer = 4 << 10

var requestWriters = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, directBuffer) }}

// RoundTrip implements http.RoundTripper. It never follows a redirect.
func (d *Direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if !Bare(r) {
		return d.Rest.RoundTrip(r)
	}
	if c := d.idleConn(r.URL.Host); c != nil {
		resp, begun, err := c.roundTrip(r)
		// Its server may have closed it when nobody looked. It is asked once more, and on a
		// connection on which that cannot be: an application must not hear a request often.
		if err == nil || begun || r.Context().Err() != nil || late(err) {
			return resp, err
		}
	}
	conn, err := d.Dial(r.Context(), r.URL.Host)
	if err != nil {
		return nil, err
	}
	c := &directConn{Conn: conn, owner: d, address: r.URL.Host, limit: io.LimitedReader{R: conn}}
	c.reader = bufio.NewReaderSize(&c.limit, directBuffer)
	resp, _, err := c.roundTrip(r)
	return resp, err
}

// late says whether a server has had its time, and is not to get it again.
func late(err error) bool {
	var timed interface{ Timeout() bool }
	return errors.As(err, &timed) && timed.Timeout()
}

// Bare says whether a request has nothing in it but a header, and may be sent again when
// the server has not answered.
func Bare(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		return false
	}
	return r.URL.Scheme == "http" && (r.Body == nil || r.Body == http.NoBody) && r.Header.Get("Expect") == ""
}

// idleConn returns a connection that was used before and is open; nil: there is none.
func (d *Direct) idleConn(address string) *directConn {
	for c := d.take(address); c != nil; c = d.take(address) {
		if c.quiet() {
			return c
		}
		_ = c.Close() // its server closed it
	}
	return nil
}

// take returns the connection that was used last.
func (d *Direct) take(address string) *directConn {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.idle[address]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	list[len(list)-1] = nil
	if d.idle[address] = list[:len(list)-1]; len(list) == 1 {
		delete(d.idle, address)
	}
	c.expiry.Stop()
	return c
}

// keep takes a connection back, or closes it.
func (d *Direct) keep(c *directConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.idle[c.address]) >= d.MaxIdle {
		_ = c.Close()
		return
	}
	if d.idle == nil {
		d.idle = map[string][]*directConn{}
	}
	d.idle[c.address] = append(d.idle[c.address], c)
	if c.expiry == nil {
		c.expiry = time.AfterFunc(d.IdleTime, c.expire)
	} else {
		c.expiry.Reset(d.IdleTime)
	}
}

// expire closes a connection that is still idle.
func (c *directConn) expire() {
	d := c.owner
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.idle[c.address]
	for i, other := range list {
		if other == c {
			if d.idle[c.address] = append(list[:i:i], list[i+1:]...); len(list) == 1 {
				delete(d.idle, c.address)
			}
			_ = c.Close()
			return
		}
	}
}

// CloseIdleConnections closes the connections that nobody uses, those of Rest too.
func (d *Direct) CloseIdleConnections() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, list := range d.idle {
		for _, c := range list {
			c.expiry.Stop()
			_ = c.Close()
		}
	}
	d.idle = nil
	if rest, ok := d.Rest.(interface{ CloseIdleConnections() }); ok {
		rest.CloseIdleConnections()
	}
}

// quiet says whether an idle connection is open and has nothing to say.
func (c *directConn) quiet() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) { quiet = nothingToRead(fd) })
	return quiet && err == nil
}

// roundTrip sends a request and reads the header of its answer. begun is whether any of that
// has come. After an error the connection is closed.
func (c *directConn) roundTrip(r *http.Request) (_ *http.Response, begun bool, err error) {
	ctx := r.Context()
	// It is reset and not merely told that its time is over: there are other deadlines, and a
	// server that only hears that nothing more is sent goes on with what nobody wants.
	stop := context.AfterFunc(ctx, func() { Reset(c.Conn) })
	defer func() {
		if err != nil {
			stop()
			Reset(c.Conn)
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
		}
	}()
	w := requestWriters.Get().(*bufio.Writer)
	w.Reset(c.Conn)
	err = r.Write(w)
	if err == nil {
		err = w.Flush()
	}
	w.Reset(nil)
	requestWriters.Put(w)
	if err != nil {
		return nil, false, err
	}
	resp, err := c.answer(r)
	if err != nil {
		return nil, c.limit.N < c.owner.MaxHeader, err
	}
	resp.Request = r
	body := &directBody{ReadCloser: resp.Body, conn: c, stop: stop, ctx: ctx}
	body.chunked = len(resp.TransferEncoding) > 0
	body.reusable = !resp.Close && resp.StatusCode != http.StatusSwitchingProtocols
	if resp.Body == http.NoBody {
		body.end(true)
		return resp, true, nil
	}
	resp.Body = body
	return resp, true, nil
}

// answer reads headers until that of the real answer.
func (c *directConn) answer(r *http.Request) (*http.Response, error) {
	if t := c.owner.AnswerTime; t > 0 {
		if err := c.SetReadDeadline(time.Now().Add(t)); err != nil {
			return nil, err
		}
	}
	c.limit.N = c.owner.MaxHeader
	trace := httptrace.ContextClientTrace(r.Context())
	for range maxInterim {
		resp, err := http.ReadResponse(c.reader, r)
		if err != nil {
			if c.limit.N <= 0 {
				err = errLongHeader
			}
			return nil, err
		}
		if interim(resp.StatusCode) {
			if trace != nil && trace.Got1xxResponse != nil {
				if err := trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
					return nil, err
				}
			}
			continue
		}
		c.limit.N = math.MaxInt64 // what follows is not the header
		if c.owner.AnswerTime > 0 {
			return resp, c.SetReadDeadline(time.Time{})
		}
		return resp, nil
	}
	return nil, errInterim
}

// interim says whether the real answer is still to come.
func interim(status int) bool {
	return status >= http.StatusContinue && status < http.StatusOK && status != http.StatusSwitchingProtocols
}

var (
	errLongHeader = errors.New("the header of the answer is too long")
	errInterim    = errors.New("too many answers before the real one")
)

// directBody is the body of an answer. With its end the connection is free again.
type directBody struct {
	io.ReadCloser
	conn     *directConn
	ctx      context.Context
	stop     func() bool
	chunked  bool
	reusable bool
	ended    bool
}

// Read implements io.Reader.
func (b *directBody) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end(errors.Is(err, io.EOF))
		if cause := context.Cause(b.ctx); cause != nil && !errors.Is(err, io.EOF) {
			err = cause
		}
	}
	return n, err
}

// begun says whether the first read of the body is known not to wait: that of a chunk waits
// for the end of the chunk, or until what it is read into is full.
func (b *directBody) begun() bool {
	r := b.conn.reader
	ahead, err := r.Peek(r.Buffered())
	if err != nil || !b.chunked {
		return err == nil && len(ahead) > 0
	}
	line, chunk, whole := bytes.Cut(ahead, []byte("\r\n"))
	length, _, _ := bytes.Cut(line, []byte(";"))
	size, err := strconv.ParseUint(string(bytes.TrimSpace(length)), 16, 32)
	return whole && err == nil && uint64(len(chunk)) >= size+uint64(len("\r\n"))
}

// Close implements io.Closer. Nobody waits for what was not read.
func (b *directBody) Close() error {
	if !b.ended {
		b.end(false)
	}
	return nil
}

// end gives the connection back when all of an answer was read from it, or closes it.
func (b *directBody) end(whole bool) {
	b.ended = true
	if b.stop() && whole && b.reusable && b.conn.reader.Buffered() == 0 {
		b.conn.owner.keep(b.conn)
		return
	}
	Reset(b.conn.Conn)
}
