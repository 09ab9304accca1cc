package webproxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/hostclient"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	boxID   = "sbaaaaaaaaaaaaaaaaaaaa"
	patient = 10 * time.Second
)

// fakeSandboxes is a Sandboxes with one row each.
type fakeSandboxes struct {
	mu     sync.Mutex
	rows   map[string]sandbox.Sandbox
	sealed bool
	wakes  int
	// onHost is what Refresh finds, empty for what is known already.
	onHost sandbox.Status
	begun  int
	touch  int
	// wake is what Wake does, nil for a resume.
	wake   func(id string) error
	events chan struct {
		id     string
		status sandbox.Status
	}
}

func newFakeSandboxes(rows ...sandbox.Sandbox) *fakeSandboxes {
	f := &fakeSandboxes{rows: map[string]sandbox.Sandbox{}}
	f.events = make(chan struct {
		id     string
		status sandbox.Status
	})
	for _, sb := range rows {
		f.rows[sb.ID] = sb
	}
	return f
}

func (f *fakeSandboxes) Find(_ context.Context, id string) (sandbox.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sb, ok := f.rows[id]
	if !ok {
		return sandbox.Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	return sb, nil
}

func (f *fakeSandboxes) Begin(string) (func(), bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sealed {
		return nil, false
	}
	f.begun++
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.begun--
	}), true
}

func (f *fakeSandboxes) Touch(string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.touch++
}

func (f *fakeSandboxes) Wake(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakes++
	if f.wake != nil {
		return f.wake(id)
	}
	sb := f.rows[id]
	sb.Status = sandbox.Running
	f.rows[id] = sb
	f.sealed = false
	return nil
}

func (f *fakeSandboxes) Refresh(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sb, ok := f.rows[id]; ok && f.onHost != "" {
		sb.Status = f.onHost
		f.rows[id] = sb
	}
	return nil
}

func (f *fakeSandboxes) Follow(ctx context.Context, each func(string, sandbox.Status)) {
	for {
		select {
		case ev := <-f.events:
			each(ev.id, ev.status)
		case <-ctx.Done():
			return
		}
	}
}

// becomes changes a sandbox's status and tells it.
func (f *fakeSandboxes) becomes(t *testing.T, id string, status sandbox.Status) {
	t.Helper()
	f.mu.Lock()
	sb := f.rows[id]
	sb.Status = status
	f.rows[id] = sb
	f.mu.Unlock()
	select {
	case f.events <- struct {
		id     string
		status sandbox.Status
	}{id, status}:
	case <-time.After(patient):
		t.Fatal("nobody follows what becomes of sandboxes")
	}
}

// bench is an edge with a host agent behind it, and the servers in front of it.
type bench struct {
	edge         *Edge
	sandboxes    *fakeSandboxes
	front, paths *httptest.Server
}

// newBench starts an edge over an agent that answers as handler does.
func newBench(t *testing.T, handler http.HandlerFunc, change func(*Config), rows ...sandbox.Sandbox) *bench {
	t.Helper()
	if len(rows) == 0 {
		rows = []sandbox.Sandbox{{ID: boxID, Status: sandbox.Running}}
	}
	socket := filepath.Join(t.TempDir(), "host.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	agent := &http.Server{Handler: handler, ReadHeaderTimeout: patient}
	go func() { _ = agent.Serve(listener) }()
	transport := hostclient.NewProxyTransport(socket, nil)
	b := &bench{sandboxes: newFakeSandboxes(rows...)}
	cfg := Config{Sandboxes: b.sandboxes, Host: transport, Domain: "localhost", Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	b.edge = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { b.edge.Run(ctx) })
	start := func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ConnContext = ConnContext
		s.Start()
		return s
	}
	b.front = start(b.edge.Front(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the API") })))
	b.paths = start(b.edge.Paths())
	t.Cleanup(func() {
		b.edge.Close()
		cancel()
		running.Wait()
		b.front.Close()
		b.paths.Close()
		transport.Close()
		_ = agent.Close()
	})
	return b
}

// ask sends a request with a Host, and a path as it is, to a server.
func ask(t *testing.T, s *httptest.Server, method, host, path string, headers ...string) *http.Response {
	t.Helper()
	var request strings.Builder
	fmt.Fprintf(&request, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	for i := 0; i+1 < len(headers); i += 2 {
		fmt.Fprintf(&request, "%s: %s\r\n", headers[i], headers[i+1])
	}
	return raw(t, s.Listener.Addr().String(), request.String()+"\r\n")
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	_ = json.NewEncoder(w).Encode(map[string]any{"uri": r.RequestURI, "host": r.Host, "header": r.Header})
}

type echoed struct {
	URI    string      `json:"uri"`
	Host   string      `json:"host"`
	Header http.Header `json:"header"`
}

func decode(t *testing.T, resp *http.Response) echoed {
	t.Helper()
	var e echoed
	if text := body(t, resp); resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %d: %s", resp.StatusCode, text)
	} else if err := json.Unmarshal([]byte(text), &e); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return e
}

func TestPathsArriveByteForByte(t *testing.T) {
	b := newBench(t, echo, nil)
	prefix := "/proxy/" + boxID + "/3000"
	for _, path := range []string{
		"/", "//", "/a/../b/./c", "/a%2Fb//c%2e%2e/", "/%7Euser/~user", "/x|y", "/a;b=c?x=1;y&%zz", "/?", "/a?b?c", "/a%00b",
	} {
		if got := decode(t, ask(t, b.front, http.MethodGet, "3000-"+boxID+".localhost:1", path)).URI; got != prefix+path {
			t.Errorf("by name: %q arrived as %q", path, got)
		}
		got := decode(t, ask(t, b.front, http.MethodGet, "127.0.0.1", path, sandboxHeader, boxID, portHeader, "3000"))
		if got.URI != prefix+path {
			t.Errorf("by header: %q arrived as %q", path, got.URI)
		}
		if got := decode(t, ask(t, b.paths, http.MethodGet, "127.0.0.1", prefix+path)).URI; got != prefix+path {
			t.Errorf("by path: %q arrived as %q", path, got)
		}
	}
}

func TestWhoAsksIsToldAndNotBelieved(t *testing.T) {
	b := newBench(t, echo, nil)
	host := "3000-" + boxID + ".localhost:7700"
	got := decode(t, ask(t, b.front, http.MethodGet, host, "/",
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil", "X-Forwarded-Proto", "https", "X-Forwarded-Prefix", "/evil",
		"X-Forwarded-Port", "1", "Forwarded", "for=6.6.6.6", "X-Real-Ip", "6.6.6.6", "Connection", "X-Forwarded-For, X-Mine", "X-Mine", "1",
		tokenHeader, "secret", "Cookie", "a=b; wrenn_pass=x; c=d"))
	if got.Host != host {
		t.Errorf("Host arrived as %q", got.Host)
	}
	want := map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": host, "X-Forwarded-Proto": "http", "X-Forwarded-Prefix": "",
		"X-Forwarded-Port": "", "Forwarded": "", "X-Real-Ip": "", "X-Mine": "", tokenHeader: "", "Cookie": "a=b; c=d",
	}
	for name, value := range want {
		if got.Header.Get(name) != value || len(got.Header.Values(name)) > 1 {
			t.Errorf("%s arrived as %q, not %q", name, got.Header.Values(name), value)
		}
	}
	got = decode(t, ask(t, b.paths, http.MethodGet, "127.0.0.1:1", "/proxy/"+boxID+"/80/x"))
	if p := got.Header.Get("X-Forwarded-Prefix"); p != "/proxy/"+boxID+"/80" {
		t.Errorf("X-Forwarded-Prefix arrived as %q", p)
	}
}

func TestMask(t *testing.T) {
	b := newBench(t, echo, nil, sandbox.Sandbox{ID: boxID, Status: sandbox.Running, Web: sandbox.Web{MaskHost: "localhost:${PORT}"}})
	host := "3000-" + boxID + ".localhost:7700"
	got := decode(t, ask(t, b.front, http.MethodGet, host, "/", "Origin", "http://"+host))
	if got.Host != "localhost:3000" || got.Header.Get("Origin") != "http://localhost:3000" || got.Header.Get("X-Forwarded-Host") != host {
		t.Errorf("arrived as %+v", got)
	}
	if got := decode(t, ask(t, b.front, http.MethodGet, host, "/", "Origin", "http://evil")); got.Header.Get("Origin") != "http://evil" {
		t.Errorf("another's Origin arrived as %q", got.Header.Get("Origin"))
	}
}

func TestNavigationIsStrippedForNames(t *testing.T) {
	prefix := "/proxy/" + boxID + "/3000"
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", prefix+"/login")
		w.Header().Add("Set-Cookie", "a=b; Path="+prefix+"/")
		w.WriteHeader(http.StatusFound)
	}, nil)
	resp := ask(t, b.front, http.MethodGet, "3000-"+boxID+".localhost", "/")
	if l, c := resp.Header.Get("Location"), resp.Header.Get("Set-Cookie"); resp.StatusCode != http.StatusFound || l != "/login" || c != "a=b; Path=/" {
		t.Errorf("by name: %d, Location %q, Set-Cookie %q", resp.StatusCode, l, c)
	}
	resp = ask(t, b.paths, http.MethodGet, "127.0.0.1", prefix+"/")
	if l := resp.Header.Get("Location"); l != prefix+"/login" {
		t.Errorf("by path: Location %q", l)
	}
	resp = ask(t, b.paths, http.MethodGet, "127.0.0.1", prefix+"?a=b")
	if l := resp.Header.Get("Location"); resp.StatusCode != http.StatusTemporaryRedirect || l != prefix+"/?a=b" {
		t.Errorf("without the slash: %d, Location %q", resp.StatusCode, l)
	}
}

func TestOthersGoToTheAPI(t *testing.T) {
	b := newBench(t, echo, nil)
	for _, host := range []string{"localhost", "api.example.com", "3000-" + boxID + ".example.com", "[::1]:80"} {
		if got := body(t, ask(t, b.front, http.MethodGet, host, "/proxy/"+boxID+"/3000/")); got != "the API" {
			t.Errorf("%s: %s", host, got)
		}
	}
	// Routing headers count only where nothing else can be meant.
	if got := body(t, ask(t, b.front, http.MethodGet, "api.example.com", "/", sandboxHeader, boxID, portHeader, "80")); got != "the API" {
		t.Error(got)
	}
	for _, host := range []string{"LOCALHOST.:80", "[::1]:80", "[::1]", "127.0.0.1", "sandbox.example.com", "Sandbox.e2b.app:443"} {
		if resp := ask(t, b.front, http.MethodGet, host, "/", sandboxHeader, boxID+"-client", portHeader, "80"); resp.StatusCode != http.StatusOK || decode(t, resp).URI == "/" {
			t.Errorf("%s does not take routing headers", host)
		}
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t, echo, nil, sandbox.Sandbox{ID: boxID, Status: sandbox.Running},
		sandbox.Sandbox{ID: "sbpaused", Status: sandbox.Paused}, sandbox.Sandbox{ID: "sbdead", Status: sandbox.Error},
		sandbox.Sandbox{ID: "sbbetween", Status: sandbox.Resuming})
	gone := `{"sandboxId":"%s","message":"The sandbox was not found","code":502}`
	for _, c := range []struct {
		name, host, path string
		headers          []string
		status           int
		says             string
	}{
		{"unknown", "80-sbnone.localhost", "/", nil, 502, fmt.Sprintf(gone, "sbnone")},
		{"paused", "80-sbpaused.localhost", "/", nil, 502, fmt.Sprintf(gone, "sbpaused")},
		{"dead", "80-sbdead.localhost", "/", nil, 502, fmt.Sprintf(gone, "sbdead")},
		{"between", "80-sbbetween.localhost", "/", nil, 409, "still transitioning"},
		{"port 0", "0-" + boxID + ".localhost", "/", nil, 400, "Invalid sandbox port"},
		{"port 65536", "65536-" + boxID + ".localhost", "/", nil, 400, "Invalid sandbox port"},
		{"port abc", "abc-" + boxID + ".localhost", "/", nil, 400, "Invalid sandbox port"},
		{"bad id", "80-sb_x.localhost", "/", nil, 400, "Invalid sandbox ID"},
		{"one header", "localhost", "/", []string{sandboxHeader, boxID}, 400, "missing header"},
		{"header twice", "localhost", "/", []string{sandboxHeader, boxID, portHeader, "1", portHeader, "2"}, 400, "missing header"},
		{"bad header", "localhost", "/", []string{sandboxHeader, boxID, portHeader, "x"}, 400, "Invalid sandbox port"},
		{"init", "49983-" + boxID + ".localhost", "//init", nil, 404, `"path":"//init"`},
		{"escaped init", "49983-" + boxID + ".localhost", "/%69nit/", nil, 404, `"code":404`},
		{"init of nobody", "49983-sbnone.localhost", "/a/../init?x", nil, 404, `"code":404`},
	} {
		resp := ask(t, b.front, http.MethodGet, c.host, c.path, c.headers...)
		if got := body(t, resp); resp.StatusCode != c.status || !strings.Contains(got, c.says) {
			t.Errorf("%s: %d %s", c.name, resp.StatusCode, got)
		}
	}
	if resp := ask(t, b.paths, http.MethodGet, "127.0.0.1", "/"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("the root of the paths answers %d", resp.StatusCode)
	}
	resp := ask(t, b.front, http.MethodGet, "80-sbpaused.localhost", "/", "User-Agent", "Mozilla/5.0", "Accept", "text/html")
	if got := body(t, resp); !strings.Contains(got, "wrenn resume sbpaused") {
		t.Errorf("a browser is told %s", got)
	}
}

func TestRequestsGoNowhereElse(t *testing.T) {
	b := newBench(t, echo, nil)
	addr := b.front.Listener.Addr().String()
	for _, c := range []struct{ request, uri string }{
		// The host of the address, not that of the header, decides where a request goes.
		{"GET http://3000-" + boxID + ".localhost/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "/proxy/" + boxID + "/3000/x"},
		{"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 3000-" + boxID + ".localhost\r\n\r\n", ""},
		{"GET http://3000-" + boxID + ".localhost HTTP/1.1\r\nHost: x\r\n\r\n", "/proxy/" + boxID + "/3000/"},
		{"GET //169.254.169.254/latest HTTP/1.1\r\nHost: 3000-" + boxID + ".localhost\r\n\r\n", "/proxy/" + boxID + "/3000//169.254.169.254/latest"},
		{"GET /@evil:80 HTTP/1.1\r\nHost: 3000-" + boxID + ".localhost\r\n\r\n", "/proxy/" + boxID + "/3000/@evil:80"},
		{"GET /../../other/80/ HTTP/1.1\r\nHost: 3000-" + boxID + ".localhost\r\n\r\n", "/proxy/" + boxID + "/3000/../../other/80/"},
	} {
		resp := raw(t, addr, c.request)
		if c.uri == "" {
			if got := body(t, resp); got != "the API" {
				t.Errorf("%q: %s", c.request, got)
			}
			continue
		}
		if got := decode(t, resp).URI; got != c.uri {
			t.Errorf("%q went to %q", c.request, got)
		}
	}
	if resp := raw(t, addr, "CONNECT evil:80 HTTP/1.1\r\nHost: 3000-"+boxID+".localhost\r\n\r\n"); resp.StatusCode == http.StatusOK && body(t, resp) != "the API" {
		t.Errorf("CONNECT answers %d", resp.StatusCode)
	}
}

// raw sends bytes and reads the answer to them.
func raw(t *testing.T, addr, request string) *http.Response {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patient))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return resp
}
