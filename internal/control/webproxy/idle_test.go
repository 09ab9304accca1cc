package webproxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// openRaw opens a WebSocket to a sandbox, as far as the answer to it.
func openRaw(t *testing.T, b *bench, id string) (net.Conn, int) {
	t.Helper()
	conn := dial(t, b.front.Listener.Addr().String())
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: 80-"+id+".localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn, resp.StatusCode
}

// exchangeFrame sends a text frame of one letter and reads its echo.
func exchangeFrame(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.WriteString(conn, "\x81\x81\x00\x00\x00\x00x"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("\x81\x01x"))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "\x81\x01x" {
		t.Fatalf("%q came back, %v", got, err)
	}
}

// wantReset waits until a connection is cut.
func wantReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ended with %v, want a reset", err)
	}
}

// Whoever merely holds connections keeps nobody out: the one that was of no use for longest
// gives way, of the sandbox that has too many or of all.
func TestIdleVisitsGiveWay(t *testing.T) {
	const second, third = "sbsecond", "sbthird"
	b := newBench(t, serveSocket, func(c *Config) { c.MaxVisits = 4 }, sandbox.Sandbox{ID: boxID, Status: sandbox.Running},
		sandbox.Sandbox{ID: second, Status: sandbox.Running}, sandbox.Sandbox{ID: third, Status: sandbox.Running})
	b.edge.guests.idle = 0
	open := func(id string) net.Conn {
		t.Helper()
		conn, status := openRaw(t, b, id)
		if status != http.StatusSwitchingProtocols {
			t.Fatalf("%s is not opened: %d", id, status)
		}
		return conn
	}
	used, silent := open(boxID), open(boxID)
	exchangeFrame(t, used)
	next := open(boxID)
	wantReset(t, silent)
	rest := []net.Conn{next, open(second), open(second)}
	last := open(third)
	wantReset(t, used)
	for _, conn := range append(rest, last) {
		exchangeFrame(t, conn)
		_ = conn.Close()
	}
	eventually(t, "all places are given back", func() bool { return b.edge.guests.room.used.Load() == 0 })
}

// Who waits for an answer and gives way is told why.
func TestIdleRequestsGiveWay(t *testing.T) {
	hold := make(chan struct{})
	var asked atomic.Int32
	b := newBench(t, func(http.ResponseWriter, *http.Request) {
		if asked.Add(1) == 1 {
			<-hold
		}
	}, func(c *Config) { c.MaxConnections = 1 })
	defer close(hold)
	b.edge.guests.idle = 0
	conn := dial(t, b.front.Listener.Addr().String())
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\n\r\n")
	eventually(t, "one is under way", func() bool { return asked.Load() == 1 })
	if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusOK {
		t.Errorf("the second: %d", resp.StatusCode)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests {
		t.Fatalf("the first: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}
