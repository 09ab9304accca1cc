package webproxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// All sandboxes together have no more visitors than the process has room for, and one of them
// half of that.
func TestRoomForVisits(t *testing.T) {
	const second, third = "sbsecond", "sbthird"
	b := newBench(t, serveSocket, func(c *Config) { c.MaxVisits = 4 }, sandbox.Sandbox{ID: boxID, Status: sandbox.Running},
		sandbox.Sandbox{ID: second, Status: sandbox.Running}, sandbox.Sandbox{ID: third, Status: sandbox.Running})
	open := func(id string) (*http.Response, net.Conn) {
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
		return resp, conn
	}
	var last net.Conn
	for _, id := range []string{boxID, boxID, second} {
		if resp, _ := open(id); resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s is not opened: %d", id, resp.StatusCode)
		}
	}
	if resp, _ := open(boxID); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("one sandbox had more than half: %d", resp.StatusCode)
	}
	if resp, conn := open(second); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the other half is not for others: %d", resp.StatusCode)
	} else {
		last = conn
	}
	resp, _ := open(third)
	if got := body(t, resp); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" ||
		resp.Header.Get(webroute.HeaderProblem) == "" || !strings.Contains(got, `"code":503`) || !strings.Contains(got, third) {
		t.Errorf("when there is no room: %d %v %s", resp.StatusCode, resp.Header, got)
	}
	if got := body(t, ask(t, b.front, http.MethodGet, "localhost", "/")); got != "the API" {
		t.Errorf("the API answers %q", got)
	}
	_ = last.Close()
	eventually(t, "there is room again", func() bool {
		return ask(t, b.front, http.MethodGet, "80-"+third+".localhost", "/").StatusCode == http.StatusOK
	})
}

// crowdServer answers /hold when release is closed and all else at once.
func crowdServer(t *testing.T, most int) (s *httptest.Server, held chan struct{}, release chan struct{}) {
	t.Helper()
	held, release = make(chan struct{}, most+1), make(chan struct{})
	s = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hold":
			held <- struct{}{}
			<-release
		case "/hijack":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
			held <- struct{}{}
			return
		}
		_, _ = io.WriteString(w, "done")
	}))
	c := NewCrowd(most)
	c.Guard(s.Config)
	s.Listener = c.Listen(s.Listener)
	s.Start()
	t.Cleanup(s.Close)
	return s, held, release
}

// Connections that are idle, or never get further than half a request, make room for others;
// those of which something comes stay.
func TestCrowd(t *testing.T) {
	const most = 4
	s, held, release := crowdServer(t, most)
	addr := s.Listener.Addr().String()
	idle := make([]*net.TCPConn, 0, 3*most)
	for i := range cap(idle) {
		conn := dial(t, addr)
		if i%2 == 0 {
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHo"); err != nil {
				t.Fatal(err)
			}
		}
		idle = append(idle, conn)
	}
	if got := body(t, ask(t, s, http.MethodGet, "x", "/")); got != "done" {
		t.Errorf("in a crowd the answer is %q", got)
	}
	// The first of them went long ago.
	if _, err := idle[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest connection is open: %v", err)
	}
	upgraded := dial(t, addr)
	working := []*net.TCPConn{dial(t, addr), dial(t, addr), dial(t, addr)}
	for i, conn := range append([]*net.TCPConn{upgraded}, working...) {
		path := "/hold"
		if i == 0 {
			path = "/hijack"
		}
		if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-held
	}
	// All of them are of use, so that the next has to go.
	late := dial(t, addr)
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one more than there may be ended with %v", err)
	}
	close(release)
	for _, conn := range working {
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("one that was being answered: %v", err)
		}
		if got := body(t, resp); got != "done" {
			t.Errorf("one that was being answered got %q", got)
		}
		_ = resp.Body.Close() // it was read
	}
	if _, err := io.WriteString(upgraded, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(upgraded, make([]byte, len("hello"))); err != nil {
		t.Errorf("the upgraded connection ended: %v", err)
	}
}
