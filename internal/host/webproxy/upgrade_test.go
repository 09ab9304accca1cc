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
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
)

// echo answers every message of a WebSocket with itself, and "bye" with a close.
func echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}, InsecureSkipVerify: true})
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
			_ = c.Close(4002, "as you wish")
			return
		}
		if err := c.Write(r.Context(), kind, data); err != nil {
			return
		}
	}
}

func (b *bench) webSocket() *websocket.Conn {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, b.front.URL+b.prefix()+"/ws?x=1", &websocket.DialOptions{Subprotocols: []string{"chat"}})
	if err != nil {
		b.t.Fatal(err)
	}
	c.SetReadLimit(-1)
	b.t.Cleanup(func() { c.CloseNow() })
	return c
}

// say sends a message and waits for its echo.
func (b *bench) say(c *websocket.Conn, text string) error {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		return err
	}
	_, got, err := c.Read(ctx)
	if err == nil && string(got) != text {
		err = fmt.Errorf("%d bytes came back as %d", len(text), len(got))
	}
	return err
}

func TestWebSockets(t *testing.T) {
	b := withApp(t, http.HandlerFunc(echo), Config{})
	c := b.webSocket()
	if c.Subprotocol() != "chat" {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	for _, text := range []string{"", "hello", strings.Repeat("x", 3<<20)} {
		if err := b.say(c, text); err != nil {
			t.Fatal(err)
		}
	}
	if got := websocket.CloseStatus(b.say(c, "bye")); got != 4002 {
		t.Errorf("the application's close arrived as %d", got)
	}
	closed := make(chan websocket.StatusCode, 1)
	b2 := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		_, _, err = c.Read(r.Context())
		closed <- websocket.CloseStatus(err)
	}), Config{})
	if err := b2.webSocket().Close(4001, "mine"); err != nil {
		t.Error(err)
	}
	if got := <-closed; got != 4001 {
		t.Errorf("the client's close arrived as %d", got)
	}
	for _, b := range []*bench{b, b2} {
		eventually(t, "nothing is left", b.idle)
	}
}

// idle reports whether the proxy holds no request and no tunnel.
func (b *bench) idle() bool {
	b.proxy.mu.Lock()
	defer b.proxy.mu.Unlock()
	for _, g := range b.proxy.guests {
		g.mu.Lock()
		open := g.open
		g.mu.Unlock()
		if open > 0 {
			return false
		}
	}
	return true
}

const askUpgrade = "GET PREFIX/x HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: my-protocol\r\n"

// Either side may end its half of an upgraded connection while the other goes on.
func TestHalvesOfUpgradedConnectionsEndApart(t *testing.T) {
	b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil || req.Header.Get("Upgrade") != "my-protocol" {
			return
		}
		// What comes with the header belongs to the new protocol.
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: my-protocol\r\n\r\nfirst ")
		all, _ := io.ReadAll(r)
		_, _ = c.Write(all)
	})
	c, answer := b.raw(askUpgrade + "\r\nsent ahead ")
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "my-protocol" {
		t.Fatal(resp, err)
	}
	if _, err := io.WriteString(c, "and after"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(answer)
	if err != nil || string(got) != "first sent ahead and after" {
		t.Errorf("%q, %v", got, err)
	}
	eventually(t, "nothing is left", b.idle)
}

// Upgrades that are none of a port's business do not get through.
func TestUpgradeGames(t *testing.T) {
	asked := make(chan *http.Request, 1)
	answer := ""
	b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
		if req, err := http.ReadRequest(r); err == nil {
			_, _ = io.Copy(io.Discard, req.Body)
			asked <- req
			_, _ = io.WriteString(c, answer)
		}
	})
	const ok = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
	switching := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n"
	for _, c := range []struct {
		name, request, answer string
		arrives               string // as Upgrade
		status                int
	}{
		{"h2c", "GET PREFIX/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n", ok, "", 200},
		{"h2c in a list", "GET PREFIX/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n", ok, "", 200},
		{"twice", "GET PREFIX/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n\r\n", ok, "", 200},
		{"not in Connection", "GET PREFIX/ HTTP/1.1\r\nHost: h\r\nUpgrade: a\r\n\r\n", ok, "", 200},
		{"nothing", "GET PREFIX/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n\r\n", ok, "", 200},
		{"a body", "POST PREFIX/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: a\r\nContent-Length: 2\r\n\r\nhi", ok, "", 200},
		{"HTTP/1.0", "GET PREFIX/ HTTP/1.0\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n", ok, "", 200},
		{"refused", askUpgrade + "\r\n", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "my-protocol", 403},
		{"unheard", askUpgrade + "\r\n", ok, "my-protocol", 200},
		{"another protocol", askUpgrade + "\r\n", fmt.Sprintf(switching, "other"), "my-protocol", 502},
		{"no protocol", askUpgrade + "\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "my-protocol", 502},
		{"unasked", "GET PREFIX/ HTTP/1.1\r\nHost: h\r\n\r\n", fmt.Sprintf(switching, "my-protocol"), "", 502},
		{"garbage", askUpgrade + "\r\n", "garbage\r\n\r\n", "my-protocol", 502},
		{"nothing at all", askUpgrade + "\r\n", "", "my-protocol", 502},
		{"a huge header", askUpgrade + "\r\n", "HTTP/1.1 101 Switching Protocols\r\nX: " + strings.Repeat("x", 1<<20), "my-protocol", 502},
		{"too many before", askUpgrade + "\r\n", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), "my-protocol", 502},
	} {
		answer = c.answer
		_, r := b.raw(c.request)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var req *http.Request
		select {
		case req = <-asked:
		case <-time.After(patience):
			t.Fatalf("%s: answered with %s, and nobody was asked", c.name, resp.Status)
		}
		if got := req.Header.Get("Upgrade"); got != c.arrives || resp.StatusCode != c.status {
			t.Errorf("%s: Upgrade arrived as %q, answered with %s", c.name, got, resp.Status)
		}
		eventually(t, c.name+": nothing is left", b.idle)
	}
}

// The headers of WebSocket arrive as its specification writes them.
func TestWebSocketHeadersAreSpelt(t *testing.T) {
	heads := make(chan string, 1)
	b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
		var head strings.Builder
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
			head.WriteString(line)
		}
		heads <- head.String()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
	})
	_, r := b.raw("GET PREFIX/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n")
	if head := <-heads; !strings.Contains(head, "\r\nSec-WebSocket-Key: x\r\n") || !strings.Contains(head, "\r\nSec-WebSocket-Version: 13\r\n") {
		t.Errorf("%q", head)
	}
	all, _ := io.ReadAll(r)
	if !strings.Contains(string(all), "\r\nSec-WebSocket-Accept: x\r\n") {
		t.Errorf("%q", all)
	}
}

// A sandbox that ends, or is paused, takes all its connections with it at once.
func TestConnectionsEndWithTheirSandbox(t *testing.T) {
	arrived := make(chan struct{}, 1)
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/ws"):
			echo(w, r)
		case r.URL.Path == "/stream":
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case r.URL.Path == "/silent":
			arrived <- struct{}{}
			<-r.Context().Done()
		default:
			_, _ = io.WriteString(w, "ok")
		}
	})
	for name, end := range map[string]func(b *bench){
		"paused":    func(b *bench) { b.set(func(sb *sandbox.Sandbox) { sb.Status = sandbox.Pausing }) },
		"stopped":   func(b *bench) { b.set(func(sb *sandbox.Sandbox) { sb.Status = sandbox.Stopped }) },
		"failed":    func(b *bench) { b.set(func(sb *sandbox.Sandbox) { sb.Status = sandbox.Failed }) },
		"restarted": func(b *bench) { b.set(func(sb *sandbox.Sandbox) { sb.StartedAt = time.Now().Add(time.Second) }) },
		"evicted":   func(b *bench) { b.proxy.EvictProxy(id) },
		"closed":    func(b *bench) { b.proxy.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			b := withApp(t, app, Config{})
			ws := b.webSocket()
			if err := b.say(ws, "hello"); err != nil {
				t.Fatal(err)
			}
			stream := b.get("/stream")
			if _, err := io.ReadFull(stream.Body, make([]byte, len("begun"))); err != nil {
				t.Fatal(err)
			}
			silent := make(chan int, 1)
			go func() {
				resp, err := b.client.Do(b.request(http.MethodGet, "/silent", http.NoBody))
				if err != nil {
					silent <- 0
					return
				}
				resp.Body.Close()
				silent <- resp.StatusCode
			}()
			<-arrived
			began := time.Now()
			end(b)
			// The news take a moment.
			eventually(t, "the WebSocket has ended", func() bool { return b.say(ws, "hello") != nil })
			if _, err := io.ReadAll(stream.Body); err == nil {
				t.Error("the stream ended as if it were complete")
			}
			if status := <-silent; status != http.StatusBadGateway {
				t.Errorf("the request that waited was answered with %d", status)
			}
			if took := time.Since(began); took > patience/2 {
				t.Errorf("that took %v", took)
			}
			want := http.StatusBadGateway
			if name == "restarted" || name == "evicted" {
				want = http.StatusOK
			}
			if resp := b.get("/"); resp.StatusCode != want {
				t.Errorf("afterwards: %s", resp.Status)
			}
			eventually(t, "nothing is left", b.idle)
		})
	}
}

// A client that goes away takes its request with it.
func TestRequestsEndWithTheirClient(t *testing.T) {
	arrived, gone := make(chan struct{}), make(chan struct{}, 1)
	b := withApp(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		gone <- struct{}{}
	}), Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := b.client.Do(b.request(http.MethodGet, "/", http.NoBody).WithContext(ctx))
		done <- err
	}()
	<-arrived
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the application still works for nobody")
	}
	eventually(t, "nothing is left", b.idle)
}
