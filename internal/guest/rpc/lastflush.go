package rpc

import (
	"context"
	"net/http"
)

// lastFlush is an answer of which the last messages travel together. Connect sends off each
// message by itself, and the end of the stream after it; the end of a process, which is
// nothing without the end of its stream, would wake the client three times.
type lastFlush struct {
	http.ResponseWriter
	flusher http.Flusher
	held    bool
}

var _ http.Flusher = (*lastFlush)(nil)

// Flush sends off what was written, unless the answer is about to end, which does that too.
func (l *lastFlush) Flush() {
	if !l.held {
		l.flusher.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (l *lastFlush) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// lastFlushKey is where the context of a request has its lastFlush.
type lastFlushKey struct{}

// joinLast lets the handlers in next use lastMessages.
func joinLast(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if flusher, ok := w.(http.Flusher); ok {
			last := &lastFlush{ResponseWriter: w, flusher: flusher}
			w, r = last, r.WithContext(context.WithValue(r.Context(), lastFlushKey{}, last))
		}
		next.ServeHTTP(w, r)
	})
}

// lastMessages says that the handler returns at once after what it sends from now on. It
// is for the handler's own goroutine.
func lastMessages(ctx context.Context) {
	if last, ok := ctx.Value(lastFlushKey{}).(*lastFlush); ok {
		last.held = true
	}
}
