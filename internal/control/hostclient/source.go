package hostclient

import (
	"errors"
	"io"
	"sync"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// buffers are what bodies are copied through. Each is fileBuffer bytes.
var buffers = sync.Pool{New: func() any { b := make([]byte, fileBuffer); return &b }}

// source is the body of a write. It gives the transport pieces of fileBuffer bytes, and
// remembers how its reader failed, which the transport's error hides.
//
// A transport may go on reading after it has returned an answer. The reader belongs to a
// caller who then uses it for something else; so release takes it away.
type source struct {
	mu  sync.Mutex
	r   io.Reader // nil when released
	err error     // how r failed
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.r == nil {
		return 0, fault.New(fault.Canceled, "the transfer is over")
	}
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// WriteTo implements io.WriterTo, which the transport prefers to Read.
func (s *source) WriteTo(w io.Writer) (written int64, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		// Readers of forms hand out a few KiB at a time; each piece sent is a system call.
		n, rerr := s.fill(*buf)
		if n > 0 {
			m, werr := w.Write((*buf)[:n])
			written += int64(m)
			if werr != nil {
				return written, werr
			}
		}
		if errors.Is(rerr, io.EOF) {
			return written, nil
		}
		if rerr != nil {
			return written, rerr
		}
	}
}

// fill reads until p is full or the reader ends. Unlike io.ReadFull it keeps the end of
// the data apart from data that was cut off.
func (s *source) fill(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = s.Read(p[n:])
		n += m
	}
	return n, err
}

// release takes the reader away, waiting for a read that is under way, and returns how
// the reader failed, if it did.
func (s *source) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.r = nil
	return s.err
}

// Close implements io.Closer. The reader is its owner's to close.
func (s *source) Close() error { return nil }
