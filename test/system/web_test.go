package system_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// clock is a server in a sandbox: a page, a redirect, and a stream of events.
const clock = `
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            while True:
                self.wfile.write(b"data: tick\n\n")
                time.sleep(0.05)
        if self.path == "/old":
            self.send_response(302)
            self.send_header("Location", "http://%s/new?a=%%2F" % self.headers["Host"])
            self.end_headers()
            return
        body = ("%s for %s" % (self.path, self.headers["Host"])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
`

// serveClock starts the clock in a sandbox and waits until it answers from outside.
func (s *sandbox) serveClock(t *testing.T, headers ...string) {
	t.Helper()
	a := s.p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "python3", "args": []string{"-c", clock}, "background": true})
	if a.status != http.StatusAccepted {
		t.Fatalf("starting the clock answered %d: %s", a.status, a.body)
	}
	limit := time.After(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		resp := s.visit(t, "/", headers...)
		if resp.StatusCode == http.StatusOK {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("the clock never answered; last %d", resp.StatusCode)
		}
	}
}

// clockPort is where the clock listens.
const clockPort = 8000

// host is the name under which port 8000 of the sandbox is shown.
func (s *sandbox) host(t *testing.T) string {
	t.Helper()
	return s.hostOf(t, clockPort)
}

// hostOf is the name under which a port of the sandbox is shown.
func (s *sandbox) hostOf(t *testing.T, port int) string {
	t.Helper()
	u, err := url.Parse(s.p.url)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d-%s.localhost:%s", port, s.id, u.Port())
}

// visit asks port 8000 of the sandbox for a page, and follows no redirect.
func (s *sandbox) visit(t *testing.T, path string, headers ...string) *http.Response {
	t.Helper()
	return s.visitPort(t, clockPort, path, headers...)
}

// visitPort is visit for any port.
func (s *sandbox) visitPort(t *testing.T, port int, path string, headers ...string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.p.url+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = s.hostOf(t, port)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(all)
}

// checkAnnounced asks the addresses for the clock that `wrenn up` has named when it began.
func (s *sandbox) checkAnnounced(t *testing.T) {
	t.Helper()
	log, err := os.ReadFile(s.p.logPath)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(log)) {
		pattern := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "Ports"))
		if !strings.HasPrefix(pattern, "http://") || !strings.Contains(pattern, "SANDBOX") {
			continue
		}
		found++
		address := strings.NewReplacer("PORT", "8000", "SANDBOX", s.id).Replace(pattern)
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
		// Names under localhost are this machine's, whatever its resolver says.
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+u.Port()+u.Path+"named", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = u.Host
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		if got := text(t, resp); got != "/named for "+u.Host {
			t.Errorf("%s answers %d %q", address, resp.StatusCode, got)
		}
		_ = resp.Body.Close() // it was read
		cancel()
	}
	const ways = 2
	if found != ways {
		t.Errorf("wrenn up has named %d addresses:\n%s", found, log)
	}
}

func TestPortsOnTheWeb(t *testing.T) {
	t.Parallel()
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	if resp := s.visit(t, "/"); resp.StatusCode != http.StatusBadGateway || !strings.Contains(text(t, resp), "port is not open") {
		t.Errorf("before anything listens: %d", resp.StatusCode)
	}
	s.serveClock(t)
	if got, want := text(t, s.visit(t, "//a%2Fb/?x")), "//a%2Fb/?x for "+s.host(t); got != want && got != "/a%2Fb/?x for "+s.host(t) { // Python joins the slashes
		t.Errorf("the page says %q", got)
	}
	if resp := s.visit(t, "/old"); resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "/new?a=%2F" {
		t.Errorf("the redirect leads to %q", resp.Header.Get("Location"))
	}
	s.checkAnnounced(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.Replace(p.url, "127.0.0.1", "localhost", 1)+"/by-header", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", s.id)
	req.Header.Set("E2b-Sandbox-Port", "8000")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: requestLimit}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := text(t, resp); got != "/by-header for "+req.URL.Host {
		t.Errorf("by routing headers there is %q", got)
	}
	ports := p.call(t, http.MethodGet, s.path("/ports"), nil)
	for _, part := range []string{`"port":8000`, `"127.0.0.1"`, `"name":"python3"`, `"url":"http://` + s.host(t) + `/"`} {
		if !strings.Contains(string(ports.body), part) {
			t.Errorf("the list of ports has no %s: %s", part, ports.body)
		}
	}
	a := p.call(t, http.MethodPost, s.path("/ports/8000/link"), nil)
	if link := a.object(t)["url"]; a.status != http.StatusCreated || link != "http://"+s.host(t)+"/" {
		t.Errorf("the link is %d %v", a.status, link)
	}
	if metrics := p.call(t, http.MethodGet, "/metrics", nil); !strings.Contains(string(metrics.body), `wrenn_proxy_requests_total{sandbox="`+s.id+`",code="3xx"} 1`) {
		t.Errorf("the metrics say\n%s", metrics.body)
	}
}

// A stream must break off, not end, when its sandbox does.
func TestEndsOfSandboxesResetStreams(t *testing.T) {
	t.Parallel()
	p := theProgram(t)
	for how, end := range map[string]func(s *sandbox) answer{
		"paused":  func(s *sandbox) answer { return p.call(t, http.MethodPost, s.path("/pause"), nil) },
		"deleted": func(s *sandbox) answer { return p.call(t, http.MethodDelete, s.path(""), nil) },
	} {
		s := newSandbox(t, p, nil)
		s.serveClock(t)
		lines := bufio.NewReader(s.visit(t, "/events").Body)
		if line, err := lines.ReadString('\n'); err != nil || line != "data: tick\n" {
			t.Fatalf("%q, %v", line, err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, lines)
			ended <- err
		}()
		if a := end(s); a.status >= http.StatusBadRequest {
			t.Fatalf("%s: %d %s", how, a.status, a.body)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: the stream ended with %v", how, err)
			}
		case <-time.After(requestLimit):
			t.Errorf("%s: the stream went on", how)
		}
		if resp := s.visit(t, "/"); resp.StatusCode != http.StatusBadGateway || !strings.Contains(text(t, resp), "The sandbox was not found") {
			t.Errorf("%s: afterwards it answers %d", how, resp.StatusCode)
		}
	}
}

func TestRequestsWakeSandboxes(t *testing.T) {
	t.Parallel()
	p := theProgram(t)
	s := newSandbox(t, p, object{"auto_resume": true, "allow_public_traffic": false, "mask_request_host": "localhost:${PORT}"})
	token, _ := s.info["traffic_token"].(string)
	s.serveClock(t, "E2b-Traffic-Access-Token", token)
	if a := p.call(t, http.MethodPost, s.path("/pause"), nil); a.status != http.StatusOK {
		t.Fatalf("pause answered %d %s", a.status, a.body)
	}
	if resp := s.visit(t, "/"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("without the token: %d", resp.StatusCode)
	}
	if status, _ := s.status(t); status != "paused" {
		t.Errorf("who may not come in woke it: it is %s", status)
	}
	const visitors = 5
	answers := make(chan string, visitors)
	for range visitors {
		go func() {
			req, err := http.NewRequest(http.MethodGet, p.url+"/page", http.NoBody)
			if err != nil {
				answers <- err.Error()
				return
			}
			req.Host = s.host(t)
			req.Header.Set("E2b-Traffic-Access-Token", token)
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: requestLimit}).Do(req)
			if err != nil {
				answers <- err.Error()
				return
			}
			defer resp.Body.Close()
			all, err := io.ReadAll(resp.Body)
			if err != nil {
				all = []byte(err.Error())
			}
			answers <- string(all)
		}()
	}
	for range visitors {
		if got := <-answers; got != "/page for localhost:8000" {
			t.Errorf("a visitor of the sleeping sandbox got %q", got)
		}
	}
	if status, _ := s.status(t); status != "running" {
		t.Errorf("it is %s", status)
	}
}
