package lifecycle

import (
	"net"
	"net/http"
	"testing"

	"golang.org/x/sys/unix"
)

// tcpPair returns two ends of one connection.
func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return conn.(*net.TCPConn), other.(*net.TCPConn)
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
	var c Connections
	open, closed := tcpPair(t)
	c.Track(open, http.StateNew)
	c.Track(closed, http.StateNew)
	c.Track(open, http.StateActive)
	c.Track(open, http.StateIdle)
	c.Track(closed, http.StateClosed)
	for _, conn := range []*net.TCPConn{open, closed} {
		if err := conn.SetNoDelay(false); err != nil {
			t.Fatal(err)
		}
	}
	c.Revive()
	if !noDelay(t, open) {
		t.Error("an open connection was not touched")
	}
	if noDelay(t, closed) {
		t.Error("a connection that was given up was touched")
	}
	if len(c.open) != 1 {
		t.Errorf("%d connections are known, want 1", len(c.open))
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
