package rpc

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/internal/guest/lifecycle"
)

// A client that asks and then reads nothing frees its handler when its time is over, over
// either protocol, and others are served meanwhile.
func TestStalledClientsAreCutOff(t *testing.T) {
	server, handler := New(Config{Logger: slog.New(slog.DiscardHandler), Users: identity.NewUsers("/etc/passwd", "/etc/group")})
	defer server.Close()
	const limit = 150 * time.Millisecond
	handler = endStalled(handler, limit)
	var active, asked atomic.Int64
	counting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		active.Add(1)
		defer active.Add(-1)
		handler.ServeHTTP(w, r)
	})
	front := httptest.NewUnstartedServer(counting)
	front.Listener = lifecycle.NewConnections(limit).Listen(front.Listener)
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetHTTP1(true)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Start()
	defer front.Close()
	file := t.TempDir() + "/large"
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<30); err != nil { // more than connections hold
		t.Fatal(err)
	}
	wantFreed := func(protocol string, requests int64) {
		t.Helper()
		eventually(t, protocol+": the handler is free again", func() bool { return asked.Load() == requests && active.Load() == 0 })
	}

	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(front.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /files?path=%s HTTP/1.1\r\nHost: guest\r\n\r\n", file); err != nil {
		t.Fatal(err)
	}
	wantFreed("HTTP/1", 1)

	if n, err := io.Copy(io.Discard, conn); err == nil && n >= 1<<30 {
		t.Errorf("%d bytes came", n)
	}

	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	get := func(path string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, front.URL+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	stuck := get("/files?path=" + file)
	defer stuck.Body.Close()
	if stuck.ProtoMajor != 2 {
		t.Fatalf("the protocol is %s", stuck.Proto)
	}
	wantFreed("HTTP/2", 2)
	if n, err := io.Copy(io.Discard, stuck.Body); err == nil {
		t.Errorf("%d bytes came, and then the end as if it were the file's", n)
	}
	other := get("/health") // over the same connection, of which only the stream has ended
	_ = other.Body.Close()
	if other.StatusCode != http.StatusNoContent {
		t.Errorf("the next answer is %s", other.Status)
	}
}
