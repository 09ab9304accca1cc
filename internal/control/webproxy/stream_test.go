package webproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/relay/relaytest"
)

const boxHost = "3000-" + boxID + ".localhost"

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patient)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("it never came that %s", what)
		}
	}
}

// dial opens a connection with a deadline.
func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patient))
	return conn.(*net.TCPConn)
}

func serveSocket(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		echo(w, r)
		return
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	for {
		kind, data, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if string(data) == "bye" {
			_ = c.Close(4321, "as you wish")
			return
		}
		if c.Write(r.Context(), kind, data) != nil {
			return
		}
	}
}

func openSocket(t *testing.T, b *bench) *websocket.Conn {
	t.Helper()
	c, resp, err := websocket.Dial(t.Context(), b.front.URL+"/socket?x=%2F", &websocket.DialOptions{Host: boxHost})
	if err != nil {
		t.Fatalf("%v %v", err, resp)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func exchangeMessage(t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != text {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
}

func TestWebSocket(t *testing.T) {
	b := newBench(t, serveSocket, nil)
	c := openSocket(t, b)
	c.SetReadLimit(-1)
	exchangeMessage(t, c, "hello")
	exchangeMessage(t, c, strings.Repeat("x", 100<<10))
	if err := c.Write(t.Context(), websocket.MessageText, []byte("bye")); err != nil {
		t.Fatal(err)
	}
	_, _, err := c.Read(t.Context())
	if websocket.CloseStatus(err) != 4321 {
		t.Fatalf("closed with %v", err)
	}
	eventually(t, "the visit is over", func() bool { return b.edge.guests.get(boxID).openCount() == 0 })
	b.sandboxes.mu.Lock()
	defer b.sandboxes.mu.Unlock()
	if b.sandboxes.begun != 0 || b.sandboxes.touch == 0 {
		t.Errorf("begun %d, touched %d", b.sandboxes.begun, b.sandboxes.touch)
	}
}

func TestUpgradeIsNotForEverything(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" && r.URL.Query().Has("other") {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "other")
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		echo(w, r)
	}, nil)
	addr := b.front.Listener.Addr().String()
	for _, upgrade := range []string{"h2c", "HTTP/2.0"} {
		resp := raw(t, addr, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "+upgrade+"\r\nHTTP2-Settings: x\r\n\r\n")
		if got := decode(t, resp); got.Header.Get("Upgrade") != "" || got.Header.Get("Http2-Settings") != "" {
			t.Errorf("%s arrived: %v", upgrade, got.Header)
		}
	}
	// One that is refused is a plain answer.
	resp := raw(t, addr, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if got := decode(t, resp); got.Header.Get("Upgrade") != "websocket" {
		t.Errorf("arrived: %v", got.Header)
	}
	resp = raw(t, addr, "GET /?other HTTP/1.1\r\nHost: "+boxHost+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("another protocol than was asked for: %d", resp.StatusCode)
	}
}

func TestHalfClose(t *testing.T) {
	release := make(chan struct{})
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			<-release
			_, _ = io.WriteString(w, "late")
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nearly;")
		all, _ := io.ReadAll(rw) // up to the half-close
		fmt.Fprintf(conn, "got %s", all)
	}, nil)
	addr := b.front.Listener.Addr().String()
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\nahead;")
	_, _ = io.WriteString(conn, "behind")
	_ = conn.CloseWrite()
	all, err := io.ReadAll(conn)
	if err != nil || !strings.HasSuffix(string(all), "early;got ahead;behind") {
		t.Fatalf("%v: %q", err, all)
	}
	// A plain request whose client sends nothing more is answered, too.
	conn = dial(t, addr)
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\nConnection: close\r\n\r\n")
	_ = conn.CloseWrite()
	eventually(t, "the request is under way", func() bool { return b.edge.guests.get(boxID).openCount() == 1 })
	close(release)
	if all, err := io.ReadAll(conn); err != nil || !strings.Contains(string(all), "late") {
		t.Fatalf("%v: %q", err, all)
	}
}

func TestAnswersThatBreakOffAreReset(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, nil)
	// HTTP/1.0 has no chunks: only a reset tells that it is not all.
	conn := dial(t, b.front.Listener.Addr().String())
	_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\nHost: "+boxHost+"\r\n\r\n")
	if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("ended with %v", err)
	}
}

func TestEndsResetConnections(t *testing.T) {
	for _, status := range []sandbox.Status{sandbox.Paused, sandbox.Stopping, sandbox.Error, sandbox.Missing} {
		t.Run(string(status), func(t *testing.T) {
			b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					serveSocket(w, r)
					return
				}
				_, _ = io.WriteString(w, "data: 1\n\n")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}, nil)
			socket := openSocket(t, b)
			exchangeMessage(t, socket, "hello")
			stream := dial(t, b.front.Listener.Addr().String())
			_, _ = io.WriteString(stream, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\n\r\n")
			lines := bufio.NewReader(stream)
			for line := ""; line != "data: 1\n"; {
				var err error
				if line, err = lines.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			b.sandboxes.becomes(t, boxID, status)
			if _, err := io.ReadAll(lines); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the stream ended with %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patient)
			defer cancel()
			if _, _, err := socket.Read(ctx); err == nil || ctx.Err() != nil {
				t.Errorf("the WebSocket ended with %v", err)
			}
			if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusBadGateway {
				t.Errorf("afterwards it answers %d", resp.StatusCode)
			}
			eventually(t, "nothing is open", func() bool {
				gu := b.edge.guests.get(boxID)
				return gu == nil || gu.openCount() == 0
			})
		})
	}
}

func TestStreamsAreFlushedAtOnce(t *testing.T) {
	next := make(chan struct{})
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 3 {
			_, _ = io.WriteString(w, "tick\n")
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	}, nil)
	lines := bufio.NewReader(ask(t, b.front, http.MethodGet, boxHost, "/").Body)
	for range 3 {
		// The next line is not even made before this one has come.
		if line, err := lines.ReadString('\n'); err != nil || line != "tick\n" {
			t.Fatalf("%q, %v", line, err)
		}
		next <- struct{}{}
	}
}

func TestEveryHTTP(t *testing.T) {
	relaytest.Run(t, func(t *testing.T, server http.Handler) (string, *http.Client) {
		prefix := "/proxy/" + boxID + "/3000"
		b := newBench(t, func(w http.ResponseWriter, r *http.Request) { http.StripPrefix(prefix, server).ServeHTTP(w, r) }, nil)
		front := b.front.Listener.Addr().String()
		transport := &http.Transport{
			DisableKeepAlives: true, DisableCompression: true,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, front)
			},
		}
		return "http://" + boxHost, &http.Client{Transport: transport}
	})
}

func TestBodiesAndTrailers(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%d %v %s", n, err, r.Trailer.Get("X-Check"))
		w.Header().Set("X-Sum", "7")
	}, nil)
	addr := b.front.Listener.Addr().String()
	resp := raw(t, addr, "POST / HTTP/1.1\r\nHost: "+boxHost+"\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n5\r\nhello\r\n0\r\nX-Check: ok\r\n\r\n")
	if got := body(t, resp); got != "5 <nil> ok" || resp.Trailer.Get("X-Sum") != "7" {
		t.Errorf("%q, trailer %v", got, resp.Trailer)
	}
	// The client waits for the word to go on, which comes from the other end.
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: "+boxHost+"\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	reader := bufio.NewReader(conn)
	sent := false
	for {
		resp, err := http.ReadResponse(reader, nil)
		if err != nil || (resp.StatusCode == http.StatusContinue) == sent {
			t.Fatalf("%v %v", resp, err)
		}
		if resp.StatusCode == http.StatusOK {
			break
		}
		if !sent {
			sent = true
			_, _ = io.WriteString(conn, "ok")
		}
	}
	// Both a length and chunks: the chunks count, on every hop.
	resp = raw(t, addr, "POST / HTTP/1.1\r\nHost: "+boxHost+"\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := body(t, resp); !strings.HasPrefix(got, "3 <nil>") {
		t.Errorf("a length beside chunks: %q", got)
	}
	resp = raw(t, addr, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\nHost: evil\r\n\r\n")
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("two hosts: %d", resp.StatusCode)
	}
}

func TestLimits(t *testing.T) {
	hold := make(chan struct{})
	var asked atomic.Int32
	b := newBench(t, func(http.ResponseWriter, *http.Request) {
		asked.Add(1)
		<-hold
	}, func(c *Config) { c.MaxConnections = 2 })
	for range 2 {
		conn := dial(t, b.front.Listener.Addr().String())
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+boxHost+"\r\n\r\n")
	}
	eventually(t, "two are under way", func() bool { return asked.Load() == 2 })
	if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("the third: %d", resp.StatusCode)
	}
	close(hold)
	b = newBench(t, echo, func(c *Config) { c.RequestRate = 1 })
	if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusOK {
		t.Errorf("the first in a second: %d", resp.StatusCode)
	}
	if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("the second in a second: %d", resp.StatusCode)
	}
}

// What is known of sandboxes is bounded; those that somebody talks to stay.
func TestGuestsAreForgotten(t *testing.T) {
	g := newGuests(1, 0, &room{})
	talked := g.learn(sandbox.Sandbox{ID: "sbtalked"}, now())
	v, err := talked.enter(func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	old := g.learn(sandbox.Sandbox{ID: "sbold"}, now())
	for i := range 2 * maxGuests {
		g.learn(sandbox.Sandbox{ID: fmt.Sprint("sb", i)}, now())
	}
	if n := len(g.all()); n != maxGuests {
		t.Errorf("%d are known", n)
	}
	if g.get("sbtalked") != talked || g.get(old.id) != nil {
		t.Error("the wrong ones were forgotten")
	}
	v.leave()
	g.remove("sbtalked")
	if g.get("sbtalked") != nil || len(g.all()) != maxGuests-1 {
		t.Error("one that has ended is still known")
	}
}

func TestMetrics(t *testing.T) {
	b := newBench(t, echo, nil)
	_ = decode(t, ask(t, b.front, http.MethodGet, boxHost, "/"))
	var out strings.Builder
	if err := b.edge.WriteMetrics(&out); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`wrenn_proxy_requests_total{sandbox="` + boxID + `",code="2xx"} 1`,
		`wrenn_proxy_response_seconds_bucket{sandbox="` + boxID + `",le="+Inf"} 1`,
		`wrenn_proxy_open{sandbox="` + boxID + `"} 0`,
	} {
		eventually(t, line, func() bool {
			out.Reset()
			return b.edge.WriteMetrics(&out) == nil && strings.Contains(out.String(), line+"\n")
		})
	}
	b.edge.EvictProxy(boxID)
	out.Reset()
	if err := b.edge.WriteMetrics(&out); err != nil || strings.Contains(out.String(), boxID) {
		t.Errorf("%v: after the end: %s", err, out.String())
	}
}
