package rpc

import (
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds how long a test waits for something to come true.
const patience = 10 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not so after %v", what, patience)
		}
	}
}

// guest is a whole daemon behind a real listener, with clients of both codecs.
type guest struct {
	url       string
	http      *http.Client
	process   processconnect.ProcessClient
	jsonProc  processconnect.ProcessClient
	files     filesystemconnect.FilesystemClient
	jsonFiles filesystemconnect.FilesystemClient
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	server, handler := New(Config{
		Logger: slog.New(slog.DiscardHandler),
		Users:  identity.NewUsers("/etc/passwd", "/etc/group"),
		Path:   "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	})
	listener := httptest.NewServer(handler)
	// Files are asked for as they are, unless a test says otherwise.
	transport := &http.Transport{DisableCompression: true}
	g := &guest{url: listener.URL, http: &http.Client{Transport: transport}}
	g.process = processconnect.NewProcessClient(g.http, g.url)
	g.jsonProc = processconnect.NewProcessClient(g.http, g.url, connect.WithProtoJSON())
	g.files = filesystemconnect.NewFilesystemClient(g.http, g.url)
	g.jsonFiles = filesystemconnect.NewFilesystemClient(g.http, g.url, connect.WithProtoJSON())
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		listener.CloseClientConnections()
		server.Close()
		listener.Close()
		if left := children(t); len(left) > 0 {
			t.Errorf("processes left behind: %v", left)
		}
	})
	return g
}

func children(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			pids = append(pids, strings.Fields(string(data))...)
		}
	}
	return pids
}

func as[T any](user string, msg *T) *connect.Request[T] {
	req := connect.NewRequest(msg)
	if user != "" {
		req.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
	return req
}

func wantConnect(t *testing.T, err error, code connect.Code, says string) {
	t.Helper()
	if connect.CodeOf(err) != code || !strings.Contains(err.Error(), says) {
		t.Errorf("error %v, want %v saying %q", err, code, says)
	}
}

// do makes a plain HTTP request and returns its answer with the body read.
func (g *guest) do(t *testing.T, method, path string, body io.Reader, headers ...string) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, g.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := g.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(data)
}

func (g *guest) want(t *testing.T, resp *http.Response, body string, status int, says string) {
	t.Helper()
	if resp.StatusCode != status || !strings.Contains(body, says) {
		t.Errorf("%s %s answers %d %s, want %d saying %q", resp.Request.Method, resp.Request.URL, resp.StatusCode, body, status, says)
	}
}

func TestHealthAndInit(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "GET", "/health", nil)
	g.want(t, resp, body, 204, "")
	resp, body = g.do(t, "POST", "/init", strings.NewReader(`{"timestamp":"2026-01-01T00:00:00Z","hyperloopIP":"10.0.0.7","lifecycleID":"x","volumeMounts":[],"unknown":1}`))
	g.want(t, resp, body, 204, "")
	if got := resp.Header.Get("X-Envd-Version"); got != Version {
		t.Errorf("version %q", got)
	}
	resp, body = g.do(t, "GET", "/envs", nil)
	g.want(t, resp, body, 200, `"E2B_EVENTS_ADDRESS":"http://10.0.0.7"`)
	resp, body = g.do(t, "POST", "/init", nil)
	g.want(t, resp, body, 204, "")
	resp, body = g.do(t, "POST", "/init", strings.NewReader(`{"envVars":[]}`))
	g.want(t, resp, body, 400, `{"code":400,"message":"the body is not valid JSON`)
	resp, body = g.do(t, "POST", "/init", strings.NewReader(`{"defaultUser":"ghost"}`))
	g.want(t, resp, body, 400, "default user 'ghost' does not exist")
	for body, says := range map[string]string{
		`{"hyperloopIP":"nowhere"}`:                                     "is not an IP address",
		`{"caBundle":"no such thing"}`:                                  "has no certificate",
		`{"volumeMounts":[{"nfs_target":"10.0.0.1:/x","path":"/mnt"}]}`: "volumes cannot be mounted",
		`{"lifecycleID":7}`:                                             "not valid JSON of this request",
	} {
		resp, answer := g.do(t, "POST", "/init", strings.NewReader(body))
		g.want(t, resp, answer, 400, says)
	}
	resp, body = g.do(t, "POST", "/init", strings.NewReader(`{"hostname":"`+strings.Repeat("x", maxInit)+`"}`))
	g.want(t, resp, body, 413, "larger than")
}

func TestAccessToken(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"secret"}`))
	g.want(t, resp, body, 204, "")
	resp, body = g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"guess"}`))
	g.want(t, resp, body, 401, `{"code":401,`)
	resp, body = g.do(t, "GET", "/health", nil)
	g.want(t, resp, body, 204, "")
	resp, body = g.do(t, "POST", "/process.Process/List", strings.NewReader("{}"), "Content-Type", "application/json")
	g.want(t, resp, body, 401, `{"code":401,"message":"unauthorized access, please provide a valid access token or method signing if supported"}`)
	resp, body = g.do(t, "POST", "/process.Process/List", strings.NewReader("{}"), "Content-Type", "application/json", "X-Access-Token", "secret")
	g.want(t, resp, body, 200, "{}")
	resp, body = g.do(t, "GET", "/files?path=/etc/passwd", nil)
	g.want(t, resp, body, 401, "missing signature query parameter")
	resp, body = g.do(t, "GET", "/files?path=/etc/passwd", nil, "X-Access-Token", "guess")
	g.want(t, resp, body, 401, "access token present in header but does not match")
	resp, body = g.do(t, "GET", "/files?path=/etc/passwd", nil, "X-Access-Token", "secret")
	g.want(t, resp, body, 200, "root:")
	resp, body = g.do(t, "POST", "/files?path=/etc/never", strings.NewReader("x"), "Content-Type", "application/octet-stream")
	g.want(t, resp, body, 401, "missing signature")
}

func TestCrossOrigin(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "OPTIONS", "/process.Process/Start", nil, "Origin", "https://x.example",
		"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,x-access-token")
	g.want(t, resp, body, 204, "")
	if resp.Header.Get("Access-Control-Allow-Origin") != "*" || resp.Header.Get("Access-Control-Allow-Headers") != "authorization,x-access-token" {
		t.Errorf("preflight headers %v", resp.Header)
	}
	resp, body = g.do(t, "GET", "/health", nil, "Origin", "https://x.example")
	g.want(t, resp, body, 204, "")
	if resp.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("headers %v", resp.Header)
	}
}
