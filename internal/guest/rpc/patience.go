package rpc

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// requestIdle is how long a request that is one message may bring nothing before it is
// given up.
const requestIdle = 60 * time.Second

// impatientReader fails a read that brings nothing for idle.
type impatientReader struct {
	body    io.Reader
	control *http.ResponseController
	idle    time.Duration
	ended   bool // the whole body was read
}

func (r *impatientReader) Read(p []byte) (int, error) {
	// Where deadlines are not supported, the client's patience has to do.
	_ = r.control.SetReadDeadline(time.Now().Add(r.idle))
	n, err := r.body.Read(p)
	r.ended = errors.Is(err, io.EOF)
	return n, err
}

// promptBody is the body of a request that is one message. Behind it the connection knows no
// deadline: the answer may take as long as a command runs.
type promptBody struct {
	impatientReader
	io.Closer
}

func (b *promptBody) Read(p []byte) (int, error) {
	n, err := b.impatientReader.Read(p)
	if err == nil || b.ended {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// prompt gives up requests whose message does not come.
func prompt(idle time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody {
			r.Body = &promptBody{impatientReader{body: r.Body, control: http.NewResponseController(w), idle: idle}, r.Body}
		}
		next.ServeHTTP(w, r)
	})
}
