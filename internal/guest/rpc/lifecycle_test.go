package rpc

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/internal/guest/lifecycle"
)

func TestMetrics(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "GET", "/metrics", nil)
	g.want(t, resp, body, 200, "")
	var got map[string]float64
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	for _, key := range []string{
		"ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "mem_total_mib", "mem_used_mib", "disk_used", "disk_total",
	} {
		mayBeNone := key == "cpu_used_pct" || key == "disk_used" // in a fresh sandbox
		if value, there := got[key]; !there || value < 0 || value == 0 && !mayBeNone {
			t.Errorf("%s is missing or no number in %s", key, body)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("nobody expects %v", got)
	}
}

func TestEnvs(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"secret","sandboxID":"sb1","envVars":{"SHAPE":"round","E2B_SANDBOX":"forged"}}`))
	g.want(t, resp, body, 204, "")
	for _, path := range []string{"/envs", "/ports", "/metrics"} {
		resp, body = g.do(t, "GET", path, nil)
		g.want(t, resp, body, 401, "valid access token")
	}
	resp, body = g.do(t, "POST", "/snapshot/prepare", nil)
	g.want(t, resp, body, 401, "valid access token")
	resp, body = g.do(t, "GET", "/envs", nil, "X-Access-Token", "secret")
	g.want(t, resp, body, 200, "")
	if body != `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb1","SHAPE":"round"}` || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s, %v", body, resp.Header)
	}
}

func TestListPorts(t *testing.T) {
	g := newGuest(t)
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	resp, body := g.do(t, "GET", "/ports", nil)
	g.want(t, resp, body, 200, "")
	var got struct{ Ports []portAnswer }
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	at := slices.IndexFunc(got.Ports, func(p portAnswer) bool { return p.Port == port })
	if at < 0 {
		t.Fatalf("port %d is not in %s", port, body)
	}
	if p := got.Ports[at]; p.Address != "127.0.0.1" || p.Protocol != "tcp" || p.PID != os.Getpid() || p.Process == "" || p.Forwarded {
		t.Errorf("%+v", p)
	}
}

// connections counts a server's connections that are open.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]http.ConnState
}

func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateClosed {
		delete(c.open, conn)
		return
	}
	c.open[conn] = state
}

func (c *connections) are(state http.ConnState, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	count := 0
	for _, s := range c.open {
		if s == state {
			count++
		}
	}
	return count == n && len(c.open) == n
}

func TestPrepareSnapshot(t *testing.T) {
	listener := httptest.NewUnstartedServer(nil)
	conns := &connections{open: map[net.Conn]http.ConnState{}}
	listener.Config.ConnState = conns.note
	synced := 0
	server, handler := New(Config{
		Logger:    slog.New(slog.DiscardHandler),
		Users:     identity.NewUsers("/etc/passwd", "/etc/group"),
		Lifecycle: lifecycle.Config{KeepAlives: listener.Config.SetKeepAlivesEnabled, Sync: func() { synced++ }},
	})
	listener.Config.Handler = handler
	listener.Start()
	t.Cleanup(func() {
		listener.Close()
		server.Close()
	})
	ask := func(client *http.Client, method, path string, status int) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, listener.URL+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
		return resp
	}
	// A connection each, kept for the next request.
	idle, asking := &http.Client{Transport: &http.Transport{}}, &http.Client{Transport: &http.Transport{}}
	defer idle.CloseIdleConnections()
	defer asking.CloseIdleConnections()
	for range 2 {
		ask(asking, "POST", "/init", 204)
		ask(idle, "GET", "/health", 204)
		eventually(t, "both connections are kept", func() bool { return conns.are(http.StateIdle, 2) })
		resp := ask(asking, "POST", "/snapshot/prepare", 204)
		if !resp.Close {
			t.Error("the connection that asked is kept")
		}
		eventually(t, "no connection is left", func() bool { return conns.are(http.StateIdle, 0) })
		ask(asking, "POST", "/snapshot/prepare", 204) // again is fine
		if resp := ask(idle, "GET", "/health", 204); !resp.Close {
			t.Error("a new connection is kept")
		}
	}
	if synced != 4 {
		t.Errorf("files were synced %d times", synced)
	}
	// A sandbox whose clock was put back is woken as well.
	req := strings.NewReader(`{"timestamp":"2030-01-01T00:00:00Z"}`)
	for range 2 {
		resp, err := asking.Post(listener.URL+"/init", "application/json", req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent || resp.Close {
			t.Errorf("init: %s, the connection is closed: %v", resp.Status, resp.Close)
		}
		ask(asking, "POST", "/snapshot/prepare", 204)
		req = strings.NewReader(`{"timestamp":"2029-01-01T00:00:00Z"}`)
	}
}
