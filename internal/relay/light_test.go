package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// lightPair is a connection and its other end.
func lightPair(t *testing.T) (*Light, *net.TCPConn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	light, err := NewLight(near.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{far, light} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return light, far.(*net.TCPConn)
}

// Whatever is written arrives, in small pieces and large ones, with an end that is slow and
// full buffers between.
func TestLightPassesEverything(t *testing.T) {
	light, far := lightPair(t)
	var sent bytes.Buffer
	for i := range 8 << 20 {
		sent.WriteByte(byte(i >> 3))
	}
	went := make(chan error, 2)
	go func() {
		for rest := sent.Bytes(); len(rest) > 0; {
			n := min(len(rest), 1+len(rest)%(2*lightMost))
			if len(rest)%3 == 0 {
				n = min(len(rest), lightMost)
			}
			if wrote, err := light.Write(rest[:n]); err != nil || wrote != n {
				went <- errors.Join(err, io.ErrShortWrite)
				return
			}
			rest = rest[n:]
		}
		went <- light.CloseWrite()
	}()
	go func() {
		_, err := io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{far}) // an echo
		went <- errors.Join(err, far.CloseWrite())
	}()
	var got bytes.Buffer
	if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{light}, make([]byte, lightMost)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-went; err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(got.Bytes(), sent.Bytes()) {
		t.Errorf("%d bytes came back of %d, or others", got.Len(), sent.Len())
	}
	if n, err := light.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the end a read is %d, %v", n, err)
	}
	if n, err := light.Read(nil); n != 0 || err != nil {
		t.Errorf("a read of nothing is %d, %v", n, err)
	}
}

// Errors are those of package net, by which servers tell what has happened.
func TestLightFailsAsTCPDoes(t *testing.T) {
	one := make([]byte, 1)
	t.Run("Deadline", func(t *testing.T) {
		light, _ := lightPair(t)
		waits := make(chan error)
		go func() {
			_, err := light.Read(one)
			waits <- err
		}()
		if err := light.SetReadDeadline(past); err != nil {
			t.Fatal(err)
		}
		err := <-waits
		var timed net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timed) || !timed.Timeout() {
			t.Errorf("a read that is late fails with %v", err)
		}
	})
	t.Run("Closed", func(t *testing.T) {
		light, _ := lightPair(t)
		waits := make(chan error)
		go func() {
			_, err := light.Read(one)
			waits <- err
		}()
		if err := light.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-waits; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a read of a closed connection fails with %v", err)
		}
		if _, err := light.Write(one); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a write to a closed connection fails with %v", err)
		}
	})
	t.Run("Reset", func(t *testing.T) {
		light, far := lightPair(t)
		Reset(far)
		if _, err := light.Read(one); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a read of a connection that was reset fails with %v", err)
		}
		if n, err := light.Write(one); n != 0 || !errors.Is(err, syscall.EPIPE) {
			t.Errorf("a write to a connection that was reset is %d, %v", n, err)
		}
	})
}
