package webproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/relay/relaytest"
)

// Upgraded connections on which nothing happens cost the proxy next to nothing.
func TestIdleWebSocketsNeedLittleMemory(t *testing.T) {
	const (
		many    = 2000
		allowed = 20 << 10 // bytes each, of heap and stacks: half of what a process with two hops may take
	)
	b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: my-protocol\r\n\r\n")
		_, _ = io.Copy(c, c)
	})
	// What this process would hold for so many without a proxy: our side of the application,
	// and that of the client.
	direct := measure(t, many, func() net.Conn {
		return ask(t, "tcp", fmt.Sprintf("%s:%d", guestIP, b.port), strings.ReplaceAll(askUpgrade+"\r\n", "PREFIX", ""))
	})
	eventually(t, "the direct connections have ended", func() bool { return runtime.NumGoroutine() < many/2 })
	through := measure(t, many, func() net.Conn {
		return ask(t, "tcp", b.front.Listener.Addr().String(), strings.ReplaceAll(askUpgrade+"\r\n", "PREFIX", b.prefix()))
	})
	each := (through - direct) / many
	t.Logf("%d bytes for each idle connection in the proxy; %d with both its ends, %d for these alone", each, through/many, direct/many)
	if each > allowed {
		t.Errorf("an idle connection takes %d bytes of the proxy, more than %d", each, allowed)
	}
	eventually(t, "nothing is left", b.idle)
}

// ask upgrades a connection and reads the answer.
func ask(t *testing.T, network, address, request string) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 256), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	return c
}

// measure is how much memory this process holds for so many connections.
func measure(t *testing.T, many int, connect func() net.Conn) int64 {
	t.Helper()
	before := inUse()
	conns := make([]net.Conn, many)
	for i := range conns {
		conns[i] = connect()
	}
	taken := inUse() - before
	for _, c := range conns {
		// It works, and is not merely open.
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	return taken
}

func inUse() int64 {
	runtime.GC()
	runtime.GC() // the first leaves what is in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// small answers as an API would.
func small(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"ok":true}`)
}

// BenchmarkLatency compares a request to an application with one through the hop.
func BenchmarkLatency(b *testing.B) {
	forBoth(b, http.HandlerFunc(small), func(b *testing.B, client *http.Client, url string) {
		for b.Loop() {
			resp, err := client.Get(url + "/")
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}

// BenchmarkThroughput compares a download from an application with one through the hop.
func BenchmarkThroughput(b *testing.B) {
	const size = 256 << 20
	app := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, &relaytest.Zeros{Left: size}, make([]byte, 64<<10))
	})
	forBoth(b, app, func(b *testing.B, client *http.Client, url string) {
		b.SetBytes(size)
		for b.Loop() {
			resp, err := client.Get(url + "/")
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{resp.Body}, make([]byte, 256<<10)); n != size {
				b.Fatal(n, err)
			}
			resp.Body.Close()
		}
	})
}

// BenchmarkMessages compares the echo of a WebSocket's message.
func BenchmarkMessages(b *testing.B) {
	forBoth(b, http.HandlerFunc(echo), func(b *testing.B, client *http.Client, url string) {
		c, _, err := websocket.Dial(b.Context(), url+"/ws", &websocket.DialOptions{HTTPClient: client})
		if err != nil {
			b.Fatal(err)
		}
		defer c.CloseNow()
		for b.Loop() {
			if err := c.Write(b.Context(), websocket.MessageText, []byte("hello")); err != nil {
				b.Fatal(err)
			}
			if _, _, err := c.Read(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// forBoth measures directly and through the hop, which is on a Unix socket.
func forBoth(b *testing.B, app http.Handler, run func(b *testing.B, client *http.Client, url string)) {
	l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", guestIP+":0")
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewUnstartedServer(app)
	server.Listener.Close()
	server.Listener = l
	server.Start()
	defer server.Close()
	port := l.Addr().(*net.TCPAddr).Port
	b.Run("direct", func(b *testing.B) { run(b, server.Client(), server.URL) })
	b.Run("through", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "host.sock")
		front, err := new(net.ListenConfig).Listen(b.Context(), "unix", path)
		if err != nil {
			b.Fatal(err)
		}
		proxy := New(Config{Sandboxes: newLifecycle(), Log: slog.New(slog.DiscardHandler)})
		defer proxy.Close()
		s := &http.Server{Handler: proxy, ReadHeaderTimeout: patience}
		go func() { _ = s.Serve(front) }()
		defer s.Close()
		transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		defer transport.CloseIdleConnections()
		run(b, &http.Client{Transport: transport}, fmt.Sprintf("http://host/proxy/%s/%d", id, port))
	})
}
