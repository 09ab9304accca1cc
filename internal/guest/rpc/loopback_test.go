package rpc

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// wantLoopbackToGoOn skips a test whose client stops to read for a while, where a connection
// on loopback does not recover from that: in gVisor it then carries a few small messages a
// second. Clients outside the sandbox are not in the way of this.
func wantLoopbackToGoOn(t *testing.T) {
	t.Helper()
	const (
		message = 280       // bytes, as an event of a watch
		quiet   = 20        // looks without progress: it is full
		after   = 256 << 10 // bytes that come within enough from a connection that goes on
		enough  = time.Second
	)
	writer, reader := loopback(t)
	var sent atomic.Int64
	go func() {
		for {
			n, err := writer.Write(make([]byte, message))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	before, same := int64(0), 0
	eventually(t, "the connection is full", func() bool {
		now := sent.Load()
		if same++; now != before {
			before, same = now, 0
		}
		return same > quiet
	})
	if err := reader.SetReadDeadline(time.Now().Add(enough)); err != nil {
		t.Fatal(err)
	}
	n, buf := int64(0), make([]byte, 4<<10) // as HTTP clients read
	var err error
	for n < before+after && err == nil {
		var m int
		m, err = reader.Read(buf)
		n += int64(m)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Skipf("after a pause of its reader, a connection on loopback brought %d of %d bytes in %v", n, before+after, enough)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func loopback(t *testing.T) (writer, reader net.Conn) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	writer, err = (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err == nil {
		t.Cleanup(func() { writer.Close() })
		reader, err = ln.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	return writer, reader
}
