package relay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// pair returns both ends of a connection.
func pair(t *testing.T, network, address string) (here, there net.Conn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = new(net.Dialer).DialContext(t.Context(), network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if there, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{here, there} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return here, there
}

// tunnel returns a client and a server that a tunnel connects, as the first of two hops
// does: the client's side is TCP and the server's a Unix socket.
func tunnel(t *testing.T) (client *net.TCPConn, server *net.UnixConn, ended chan struct{}) {
	t.Helper()
	c, in := pair(t, "tcp", "127.0.0.1:0")
	s, out := pair(t, "unix", filepath.Join(t.TempDir(), "s"))
	ended = make(chan struct{})
	for _, conn := range []net.Conn{in, out} {
		if err := conn.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	(&Tunnel{client: in, server: out}).Run(nil, func() { close(ended) })
	return c.(*net.TCPConn), s.(*net.UnixConn), ended
}

func wait(t *testing.T, ended chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the tunnel goes on")
	}
}

// Both halves may end apart, and the end of the last one is a proper end.
func TestTunnelEnds(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		client, server, ended := tunnel(t)
		a, b := net.Conn(client), net.Conn(server)
		if first == "server" {
			a, b = b, a
		}
		for _, c := range []net.Conn{a, b} {
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			if err := closeWrite(c); err != nil {
				t.Fatal(err)
			}
			other := b
			if c == b {
				other = a
			}
			if got, err := io.ReadAll(other); err != nil || string(got) != "hello" {
				t.Errorf("the %s first: %q, %v", first, got, err)
			}
		}
		wait(t, ended)
	}
}

// When the next hop is gone altogether the client sees a reset, not an end.
func TestTunnelPassesResetsOn(t *testing.T) {
	client, server, ended := tunnel(t)
	if _, err := io.WriteString(server, "some"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %v", err)
	}
	wait(t, ended)
	// The other way round the next hop sees that this one is gone.
	client, server, ended = tunnel(t)
	Reset(client)
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Error("the next hop read on")
	}
	if !hungUp(server) {
		t.Error("the next hop cannot tell that from an end")
	}
	wait(t, ended)
}

func TestUpgradeProtocol(t *testing.T) {
	for _, c := range []struct {
		connection, upgrade, want string
	}{
		{"Upgrade", "websocket", "websocket"}, {"keep-alive, upgrade", "WebSocket", "WebSocket"}, {"upgrade", "irc/6.9", "irc/6.9"},
		{"", "websocket", ""}, {"close", "websocket", ""}, {"Upgrade", "", ""}, {"Upgrade", "h2c", ""}, {"Upgrade", "H2C", ""},
		{"Upgrade", "HTTP/2.0", ""}, {"Upgrade", "websocket, h2c", ""}, {"Upgrade", "a b", ""}, {"Upgrade", "a\tb", ""}, {"Upgrade", "é", ""},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header.Set("Connection", c.connection)
		r.Header.Set("Upgrade", c.upgrade)
		if got := UpgradeProtocol(r); got != c.want {
			t.Errorf("Connection: %s, Upgrade: %s: %q", c.connection, c.upgrade, got)
		}
	}
}

// Any two hops pass the same exchange on as one does.
func TestTwoHops(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%s %s %q", r.Method, r.Header.Get("X-Keep"), body)
		w.Header().Set("X-Sum", "7")
	}))
	defer app.Close()
	hop := func(next string) *httptest.Server {
		transport := &http.Transport{DisableCompression: true}
		t.Cleanup(transport.CloseIdleConnections)
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			out := Outgoing(r)
			out.URL.Scheme, out.URL.Host = "http", next
			if err := Forward(w, out, transport, func(*http.Response) error { return nil }); err != nil {
				t.Error(err)
			}
		}))
	}
	second := hop(app.Listener.Addr().String())
	defer second.Close()
	first := hop(second.Listener.Addr().String())
	defer first.Close()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", first.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nConnection: close, X-Drop\r\nX-Drop: 1\r\nX-Keep: 2\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != `POST 2 "hi"` || resp.Trailer.Get("X-Sum") != "7" || strings.Contains(resp.Header.Get("Connection"), "X-") {
		t.Errorf("%q, %v, %v", got, resp.Trailer, err)
	}
}

// An answer that breaks off is told as one, and not as none at all: that would be asked for again.
func TestAnswerThatBreaksOffAtOnce(t *testing.T) {
	address, asked := script(t, func(_ int, c net.Conn, r *bufio.Reader) {
		answers(c, r, "HTTP/1.1 200 OK\r\nX-Here: yes\r\nContent-Length: 100\r\n\r\n", 1)
	})
	d := directFor(t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := Outgoing(r)
		out.URL.Scheme, out.URL.Host = "http", address
		if err := Forward(w, out, d, func(*http.Response) error { return nil }); err != nil {
			t.Error(err)
		}
	}))
	defer front.Close()
	resp, err := front.Client().Get(front.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil || resp.Header.Get("X-Here") != "yes" || asked.Load() != 1 {
		t.Errorf("%v, %v, asked %d times", resp.Header, err, asked.Load())
	}
}

// Who goes away from an answer that is no upgrade leaves nothing behind.
func TestRefusedUpgradeEndsWithItsClient(t *testing.T) {
	ended := make(chan struct{})
	address, _ := script(t, func(_ int, c net.Conn, r *bufio.Reader) {
		defer close(ended)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nbegins")
		_, _ = io.Copy(io.Discard, r)
	})
	left := make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		c, err := new(net.Dialer).DialContext(r.Context(), "tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		out := Outgoing(r)
		out.URL.Scheme, out.URL.Host = "http", address
		up, err := Ask(r.Context(), c, out, "websocket", 4<<10)
		if err != nil {
			t.Error(err)
			return
		}
		up.Refused(r.Context(), w)
	}))
	defer front.Close()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Errorf("%q, %v", line, err)
	}
	c.Close()
	wait(t, left)
	wait(t, ended)
}
