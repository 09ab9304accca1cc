package rpc

import (
	"net/http"
	"sync/atomic"
	"time"
)

// StallLimit is how long a client may take nothing at all of an answer that waits for it.
// Then its connection is cut, so that a client which is stuck cannot keep a handler, and
// what that holds, for ever. It is no matter of how slow a client is. Of time in which the
// sandbox is paused nearly nothing counts.
const StallLimit = 5 * time.Minute

// Of an HTTP/2 stream the connection knows nothing: its client may take other streams of
// it. So each stream is looked at, in so many rounds, and written in pieces of so many
// bytes, which are what can be seen to get on.
const (
	stallRounds = 30
	stallPiece  = 64 << 10
)

// endStalled ends HTTP/2 streams whose clients take nothing for limit. A connection of
// HTTP/1, which has one answer at a time, is its listener's; see lifecycle.Connections.
func endStalled(next http.Handler, limit time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 { //nolint:mnd // HTTP/2
			next.ServeHTTP(w, r)
			return
		}
		out := &watchedStream{ResponseWriter: w}
		ended := make(chan struct{})
		defer close(ended)
		go out.watch(ended, limit)
		next.ServeHTTP(out, r)
	})
}

// watchedStream is an answer of which it is known whether it gets on.
type watchedStream struct {
	http.ResponseWriter
	// steps counts beginnings and ends of writes: it is odd while one is under way.
	steps atomic.Uint64
}

var _ http.Flusher = (*watchedStream)(nil)

// watch ends the stream when one and the same write is under way for limit.
func (s *watchedStream) watch(ended <-chan struct{}, limit time.Duration) {
	tick := time.NewTicker(limit / stallRounds)
	defer tick.Stop()
	seen, stalled := uint64(0), 0
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		now := s.steps.Load()
		if stalled++; now != seen || now%2 == 0 {
			seen, stalled = now, 0
		}
		if stalled >= stallRounds {
			// The stream may have ended by itself in this moment.
			_ = http.NewResponseController(s.ResponseWriter).SetWriteDeadline(time.Now())
			return
		}
	}
}

// Write writes p piece by piece.
func (s *watchedStream) Write(p []byte) (int, error) {
	for total := 0; ; {
		piece := p[total:min(len(p), total+stallPiece)]
		s.steps.Add(1)
		n, err := s.ResponseWriter.Write(piece)
		s.steps.Add(1)
		if total += n; err != nil || total == len(p) {
			return total, err
		}
	}
}

// Flush sends off what was written.
func (s *watchedStream) Flush() {
	s.steps.Add(1)
	defer s.steps.Add(1)
	_ = http.NewResponseController(s.ResponseWriter).Flush() // what fails is seen by the next write
}

// Unwrap is for http.ResponseController.
func (s *watchedStream) Unwrap() http.ResponseWriter { return s.ResponseWriter }
