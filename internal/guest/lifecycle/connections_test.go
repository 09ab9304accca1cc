package lifecycle

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connectionPair returns a connection that c knows, and its client's end.
func connectionPair(t *testing.T, c *Connections) (*connection, *net.TCPConn) {
	t.Helper()
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := c.Listen(inner)
	t.Cleanup(func() { ln.Close() })
	far, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	return near.(*connection), far.(*net.TCPConn)
}

func noDelay(t *testing.T, conn *net.TCPConn) bool {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	var failed error
	if err := raw.Control(func(fd uintptr) {
		value, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return value != 0
}

// What is set cannot be seen to be set again, so it is cleared first.
func TestReviveTouchesWhatIsOpen(t *testing.T) {
	c := NewConnections(time.Hour)
	open, _ := connectionPair(t, c)
	closed, _ := connectionPair(t, c)
	if err := open.Conn.(*net.TCPConn).SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	c.Revive()
	if !noDelay(t, open.Conn.(*net.TCPConn)) {
		t.Error("an open connection was not touched")
	}
	if len(c.open) != 1 {
		t.Errorf("%d connections are known, want 1", len(c.open))
	}
}

// moreThanFits is more than the kernel takes for a client that does not read, in bytes.
const moreThanFits = 128 << 20

// writeMuch writes more than fits, and says how that ended.
func writeMuch(conn *connection) <-chan error {
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Write(make([]byte, moreThanFits))
		ended <- err
	}()
	return ended
}

func wantStalled(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "took nothing for") {
		t.Errorf("the write ended with %v", err)
	}
}

func TestClientThatReadsNothingIsCutOff(t *testing.T) {
	near, _ := connectionPair(t, NewConnections(150*time.Millisecond))
	select {
	case err := <-writeMuch(near):
		wantStalled(t, err)
	case <-time.After(patience):
		t.Error("the write goes on for ever")
	}
}

// A client that reads at all, however little between two looks, is not cut off; when it
// stops to read it is. The looks come from here, so that it is no matter of time.
func TestSlowClientIsNotCutOff(t *testing.T) {
	near, far := connectionPair(t, NewConnections(time.Hour))
	ended := writeMuch(near)
	look := func() { // the first look only sees what is being written
		near.look()
		near.look()
	}
	// In fewer rounds than these together no kernel keeps what is written from the writer.
	const piece = 1 << 20
	got := make([]byte, piece)
	for range 3 * stallRounds {
		look()
		if _, err := io.ReadFull(far, got); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			look()
		case err := <-ended:
			wantStalled(t, err)
			return
		case <-deadline:
			t.Fatal("the write goes on for ever")
		}
	}
}

// Being looked at does no harm to what is written.
func TestWhatIsInterruptedArrivesWhole(t *testing.T) {
	near, far := connectionPair(t, NewConnections(time.Hour))
	want := make([]byte, 16<<20)
	for i := range want {
		want[i] = byte(i >> 8)
	}
	go func() {
		_, _ = near.Write(want)
		_ = near.Close()
	}()
	var got bytes.Buffer
	for piece := int64(1 << 20); ; {
		near.look()
		n, err := io.CopyN(&got, far, piece)
		if n < piece || err != nil {
			break
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes came, not the %d that were written", got.Len(), len(want))
	}
}

func TestWakeRevives(t *testing.T) {
	l, _ := newLifecycle(nil)
	revived := 0
	l.cfg.Revive = func() { revived++ }
	for want := 1; want < 3; want++ {
		if err := l.Wake(t.Context()); err != nil {
			t.Fatal(err)
		}
		if revived != want {
			t.Fatalf("after wake %d: revived %d times", want, revived)
		}
	}
}
