package webproxy

import (
	"errors"
	"io"
)

// smallUpload is what a body is read through that comes a little at a time, in bytes, so
// that one which waits for its client holds no more.
const smallUpload = 4 << 10

// ReadFrom implements io.ReaderFrom, by which net/http sends the bodies of requests: each
// piece at once, in pieces as large as they come.
func (c *conn) ReadFrom(r io.Reader) (total int64, err error) {
	var small [smallUpload]byte
	for {
		n, err := c.pass(r, small[:])
		total += n
		if err == nil && n == smallUpload {
			// There may be more where this came from.
			n, err = c.passLarge(r)
			total += n
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// passLarge passes pieces on as long as they are large.
func (c *conn) passLarge(r io.Reader) (total int64, err error) {
	buf := uploadBuffers.Get().(*[]byte)
	defer uploadBuffers.Put(buf)
	for {
		n, err := c.pass(r, *buf)
		total += n
		if err != nil || n < smallUpload {
			return total, err
		}
	}
}

func (c *conn) pass(r io.Reader, buf []byte) (int64, error) {
	n, err := r.Read(buf)
	if n > 0 {
		if _, err := c.Light.Write(buf[:n]); err != nil {
			return 0, err
		}
	}
	return int64(n), err
}

// Read implements io.Reader.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Light.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.guest.explain(err)
	}
	return n, err
}

// Close implements io.Closer.
func (c *conn) Close() error {
	c.guest.mu.Lock()
	delete(c.guest.conns, c)
	c.guest.mu.Unlock()
	return c.Light.Close()
}
