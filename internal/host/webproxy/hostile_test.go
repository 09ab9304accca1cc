package webproxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// said reads the problem that a request was answered with.
func (b *bench) said(resp *http.Response) (message string, port int) {
	b.t.Helper()
	var body struct {
		SandboxID string `json:"sandboxId"`
		Message   string `json:"message"`
		Port      int    `json:"port"`
		Code      int    `json:"code"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || body.Code != resp.StatusCode {
		b.t.Errorf("no problem: %s, %v", resp.Status, err)
	}
	return body.Message, body.Port
}

// A server on loopback is reachable only when its guest has noticed it, which it is asked to.
func TestPortsThatTheGuestHasToLookFor(t *testing.T) {
	l := guestListener(t)
	address := l.Addr().String()
	served := make(chan *httptest.Server, 1)
	b := newBench(t, l, Config{Look: func(ctx context.Context, _ string) {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			t.Error(err)
			served <- nil
			return
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "found") }))
		s.Listener.Close()
		s.Listener = l
		s.Start()
		served <- s
	}})
	l.Close()
	began := time.Now()
	if got := b.text(b.get("/")); got != "found" {
		t.Errorf("%q", got)
	}
	if took := time.Since(began); took >= dialBackoff {
		t.Errorf("it took %v", took)
	}
	if s := <-served; s != nil {
		s.Close()
	}
}

func TestPortsThatAreClosed(t *testing.T) {
	l := guestListener(t)
	b := newBench(t, l, Config{})
	l.Close()
	began := time.Now()
	resp := b.get("/")
	if took := time.Since(began); took < 3*dialBackoff || took > patience {
		t.Errorf("it was tried for %v", took)
	}
	message, port := b.said(resp)
	if resp.StatusCode != http.StatusBadGateway || message != "The sandbox is running but port is not open" || port != b.port {
		t.Errorf("%s: %q, port %d", resp.Status, message, port)
	}
	if kind := resp.Header.Get(webroute.HeaderProblem); kind != string(webroute.KindClosed) {
		t.Errorf("problem %q", kind)
	}
	// One that opens meanwhile is served, the body of the request not lost.
	address := l.Addr().String()
	opened := make(chan *httptest.Server, 1)
	time.AfterFunc(dialBackoff/2, func() {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Error(err)
			opened <- nil
			return
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
		s.Listener.Close()
		s.Listener = l
		s.Start()
		opened <- s
	})
	resp = b.do(b.request(http.MethodPost, "/", strings.NewReader("kept")))
	if got := b.text(resp); got != "kept" {
		t.Errorf("%s: %q", resp.Status, got)
	}
	if s := <-opened; s != nil {
		s.Close()
	}
}

func TestSandboxesThatCannotBeAsked(t *testing.T) {
	var served atomic.Int32
	b := withApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served.Add(1) }), Config{})
	for status, kind := range map[sandbox.Status]webroute.Kind{
		sandbox.Starting: webroute.KindPaused, sandbox.Pausing: webroute.KindPaused, sandbox.Paused: webroute.KindPaused,
		sandbox.Resuming: webroute.KindPaused, sandbox.Stopping: webroute.KindNotFound, sandbox.Stopped: webroute.KindNotFound,
		sandbox.Failed: webroute.KindNotFound,
	} {
		b.set(func(sb *sandbox.Sandbox) { sb.Status = status })
		resp := b.get("/")
		if message, _ := b.said(resp); message != "The sandbox was not found" || resp.Header.Get(webroute.HeaderProblem) != string(kind) {
			t.Errorf("%s: %q, %v", status, message, resp.Header)
		}
	}
	b.set(func(sb *sandbox.Sandbox) { sb.Status, sb.GuestIP = sandbox.Running, "" })
	if resp := b.get("/"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("without an address: %s", resp.Status)
	}
	b.set(func(sb *sandbox.Sandbox) { sb.GuestIP = guestIP })
	for path, status := range map[string]int{
		"/proxy/sbzzzzzzzzzzzzzzzzzzzz/80/": 502, "/proxy/" + id + "/0/": 400, "/proxy/" + id + "/65536/": 400, "/proxy/" + id + "/abc/": 400,
		"/proxy/SB/80/": 400, "/proxy/../80/": 400, "/proxy/": 400, "/proxy": 404, "/proxy/" + id: 400, "/proxy/127.0.0.1/80/": 400,
	} {
		_, answer := b.raw("GET " + path + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(answer, nil)
		if err != nil || resp.StatusCode != status {
			t.Errorf("%s: %v, %v", path, resp, err)
		}
	}
	if served.Load() != 0 {
		t.Error("a request got through")
	}
}

// Whatever a request says, it reaches the port of the guest and nothing else.
func TestRequestsReachNothingElse(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	host := other.Listener.Addr().String()
	var here atomic.Int32
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		here.Add(1)
		if strings.HasSuffix(r.URL.Path, "/redirect") {
			http.Redirect(w, r, other.URL+"/secret", http.StatusFound)
		}
	}), Config{})
	requests := []string{
		"GET PREFIX/ HTTP/1.1\r\nHost: " + host,
		"GET PREFIX//" + host + "/ HTTP/1.1\r\nHost: h",
		"GET PREFIX/@" + host + "/ HTTP/1.1\r\nHost: h",
		"GET PREFIX/http://" + host + "/ HTTP/1.1\r\nHost: h",
		"GET http://" + host + "PREFIX/ HTTP/1.1\r\nHost: h",
		"GET http://" + host + "PREFIX//x HTTP/1.1\r\nHost: " + host,
		"GET PREFIX/../../../ HTTP/1.1\r\nHost: h",
		"GET PREFIX/\\\\" + host + " HTTP/1.1\r\nHost: h",
		"GET PREFIX/ HTTP/1.1\r\nHost: h\r\nX-Forwarded-Host: " + host + "\r\nForwarded: host=" + host,
		"GET PREFIX/?url=http://" + host + " HTTP/1.1\r\nHost: h@" + host,
		"GET PREFIX/redirect HTTP/1.1\r\nHost: h",
	}
	for _, request := range requests {
		before := here.Load()
		_, answer := b.raw(request + "\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(answer, nil)
		if err != nil {
			t.Errorf("%s: %v", request, err)
			continue
		}
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusBadRequest && here.Load() != before+1 {
			t.Errorf("%s: %s, and the guest was asked %d times", request, resp.Status, here.Load()-before)
		}
	}
	if elsewhere.Load() != 0 {
		t.Error("a request reached another server")
	}
	if here.Load() < int32(len(requests))-1 {
		t.Errorf("the guest was asked only %d times", here.Load())
	}
}

// The guest daemon can be asked, but nothing that is for its host.
func TestTheDaemonsControlPaths(t *testing.T) {
	b := withApp(t, http.NotFoundHandler(), Config{})
	for _, path := range []string{"/init", "//init", "/init/", "/%69nit", "/x/../init", "/snapshot/prepare", "/freeze", "/INIT"} {
		_, answer := b.raw("POST /proxy/" + id + "/49983" + path + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(answer, nil)
		if err != nil || resp.StatusCode != http.StatusNotFound || resp.Header.Get(webroute.HeaderProblem) != string(webroute.KindNoPath) {
			t.Errorf("%s: %v, %v", path, resp, err)
		}
	}
}

func TestLimitOnConnections(t *testing.T) {
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/ws") {
			echo(w, r)
			return
		}
		_, _ = io.WriteString(w, "begun")
		_ = http.NewResponseController(w).Flush()
		if r.URL.Path == "/stay" {
			<-r.Context().Done()
		}
	}), Config{MaxConnections: 2})
	ws, stay := b.webSocket(), b.get("/stay")
	resp := b.get("/")
	if message, _ := b.said(resp); resp.StatusCode != http.StatusTooManyRequests || message == "" {
		t.Errorf("beyond the limit: %s", resp.Status)
	}
	if err := b.say(ws, "still there"); err != nil {
		t.Error(err)
	}
	stay.Body.Close()
	eventually(t, "there is room again", func() bool { return b.get("/").StatusCode == http.StatusOK })
	ws.CloseNow()
	eventually(t, "nothing is left", b.idle)
}

func TestGuestsThatAnswerNonsense(t *testing.T) {
	b := withRaw(t, Config{AnswerTime: time.Second}, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		answers := map[string]string{
			"/garbage":  "\x00\x01\x02 garbage\r\n\r\n",
			"/nothing":  "",
			"/half":     "HTTP/1.1 200 OK\r\nContent-Le",
			"/status":   "HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n",
			"/status2":  "HTTP/1.1 abc What\r\n\r\n",
			"/length":   "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
			"/lengths":  "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
			"/encoding": "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
			"/header":   "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
			"/early":    strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 8<<10)+"\r\n\r\n", 100),
		}
		if req.URL.Path == "/never" {
			_, _ = io.Copy(io.Discard, r)
			return
		}
		_, _ = io.WriteString(c, answers[req.URL.Path])
	})
	for _, path := range []string{"/garbage", "/nothing", "/half", "/status", "/status2", "/length", "/lengths", "/encoding", "/header", "/early", "/never"} {
		resp := b.get(path)
		want := http.StatusBadGateway
		if path == "/never" {
			want = http.StatusGatewayTimeout
		}
		if message, _ := b.said(resp); resp.StatusCode != want || message == "" {
			t.Errorf("%s: %s %q", path, resp.Status, message)
		}
	}
	eventually(t, "nothing is left", b.idle)
}

// Of a header without end only so much is read.
func TestHeadersWithoutEnd(t *testing.T) {
	for name, line := range map[string]string{
		"lines":    "X-Header: " + strings.Repeat("x", 1000) + "\r\n",
		"one line": strings.Repeat("x", 1000),
	} {
		sent := make(chan int64, 1)
		b := withRaw(t, Config{}, func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
			total := int64(0)
			for total < 1<<30 {
				n, err := io.WriteString(c, line)
				total += int64(n)
				if err != nil {
					break
				}
			}
			sent <- total
		})
		if resp := b.get("/"); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%s: %s", name, resp.Status)
		}
		const room = 16 << 20 // what fits into the sockets' buffers on the way
		if total := <-sent; total > maxAnswerHeader+room {
			t.Errorf("%s: %d bytes were taken", name, total)
		}
	}
}

// What could be two requests to somebody is one, or an error.
func TestSmuggling(t *testing.T) {
	var asked atomic.Int32
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %q %v %v", r.URL.Path, body, r.ContentLength, r.Header["X-Fold"])
	}), Config{})
	const hidden = "GET PREFIX/hidden HTTP/1.1\r\nHost: h\r\n\r\n"
	for _, c := range []struct {
		name, request string
		want          string // of the body; empty: refused
	}{
		{"CL and TE", "POST PREFIX/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", `/a "hello" -1 []`},
		{"TE twice", "POST PREFIX/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden, ""},
		{"TE disguised", "POST PREFIX/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + hidden, ""},
		{"TE with a tab", "POST PREFIX/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + hidden, ""},
		{"CL twice", "POST PREFIX/a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello" + hidden, ""},
		{"CL signed", "POST PREFIX/a HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc" + hidden, ""},
		{"Host twice", "GET PREFIX/a HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", ""},
		{"no Host", "GET PREFIX/a HTTP/1.1\r\n\r\n", ""},
		{"a folded header", "GET PREFIX/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Fold: a\r\n b\r\n\r\n", `/a "" 0 [a b]`},
		{"a space before the colon", "GET PREFIX/a HTTP/1.1\r\nHost: h\r\nX-Fold : a\r\n\r\n", ""},
		{"a bare LF in a value", "GET PREFIX/a HTTP/1.1\r\nHost: h\r\nX-Fold: a\rb\r\n\r\n", ""},
		{"a null", "GET PREFIX/a HTTP/1.1\r\nHost: h\r\nX-Fold: a\x00b\r\n\r\n", ""},
		{"a chunk too long", "POST PREFIX/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nx\r\n", ""},
		{"CONNECT", "CONNECT PREFIX/a HTTP/1.1\r\nHost: h\r\n\r\n", ""},
	} {
		asked.Store(0)
		conn, answer := b.raw(c.request)
		if c.want == "" { // the rest of a request that makes no sense is waited for
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.ReadResponse(answer, nil)
		if c.want == "" {
			if err == nil && resp.StatusCode < http.StatusBadRequest {
				t.Errorf("%s: %s", c.name, resp.Status)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := b.text(resp); got != c.want || asked.Load() != 1 {
			t.Errorf("%s: %q in %d requests", c.name, got, asked.Load())
		}
	}
}

// A connection of a run that has ended is not made although its address answers: that is
// another guest by now.
func TestAddressesThatHaveChangedHands(t *testing.T) {
	var asked atomic.Int32
	b := withApp(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }), Config{})
	g, refusal := b.proxy.guest(webroute.Target{Sandbox: id, Port: uint16(b.port)})
	if refusal != nil {
		t.Fatal(refusal)
	}
	b.mu.Lock()
	sb := b.all[id]
	sb.Status = sandbox.Stopped
	b.all[id] = sb // nobody is told yet
	b.mu.Unlock()
	if c, err := g.dial(t.Context(), uint16(b.port)); err == nil {
		c.Close()
		t.Error("there is a connection")
	}
	if asked.Load() != 0 {
		t.Error("the other guest was asked")
	}
}

// Redirects and cookies stay under the prefix that the client sees.
func TestNavigation(t *testing.T) {
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.Header().Set("Set-Cookie", "a=b; Path=/; Domain=example.com")
		w.WriteHeader(http.StatusFound)
	}), Config{})
	for to, want := range map[string]string{
		"/login": "PREFIX/login", "http://app.example:81/x": "PREFIX/x", "https://asked.example/x": "PREFIX/x",
		"http://localhost:PORT/x": "PREFIX/x", "http://" + guestIP + ":PORT/x": "PREFIX/x", "../x": "PREFIX/x",
		"https://example.org/": "https://example.org/", "relative": "relative",
	} {
		to = strings.ReplaceAll(to, "PORT", fmt.Sprint(b.port))
		r := b.request(http.MethodGet, "/a/b?to="+to, http.NoBody)
		r.Host = "app.example:81"
		r.Header.Set("X-Forwarded-Host", "asked.example")
		resp := b.do(r)
		if got := resp.Header.Get("Location"); got != strings.ReplaceAll(want, "PREFIX", b.prefix()) {
			t.Errorf("%s leads to %s", to, got)
		}
		if got := resp.Header.Get("Set-Cookie"); got != "a=b; Path="+b.prefix()+"/" {
			t.Errorf("cookie %q", got)
		}
	}
}

// A client that sends its header by drops is cut off, and holds up nobody.
func TestSlowloris(t *testing.T) {
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), Config{})
	const many = 50
	var slow []*bufio.Reader
	for range many {
		_, r := b.raw("GET PREFIX/ HTTP/1.1\r\nHost: h\r\nX-Slow: ")
		slow = append(slow, r)
	}
	if got := b.text(b.get("/")); got != "ok" {
		t.Errorf("got %q", got)
	}
	for _, r := range slow {
		if _, err := io.ReadAll(r); err != nil {
			t.Errorf("a slow client was not cut off: %v", err)
			break
		}
	}
}
