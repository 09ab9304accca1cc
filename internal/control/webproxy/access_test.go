package webproxy

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

const boxToken = "0123456789abcdefghij0123456789ab"

func privateBox() sandbox.Sandbox {
	return sandbox.Sandbox{ID: boxID, Status: sandbox.Running, Web: sandbox.Web{TrafficToken: boxToken}}
}

func TestPrivateSandboxes(t *testing.T) {
	b := newBench(t, echo, nil, privateBox())
	for _, c := range []struct {
		name    string
		host    string
		headers []string
		status  int
	}{
		{"nothing", boxHost, nil, 403},
		{"a wrong token", boxHost, []string{tokenHeader, "x"}, 403},
		{"the token", boxHost, []string{"e2b-traffic-access-token", boxToken}, 200},
		{"a made-up cookie", boxHost, []string{"Cookie", passCookie + "=9999999999.00"}, 403},
		{"envd, which has rules of its own", "49983-" + boxID + ".localhost", nil, 200},
		{"nobody's", "80-sbnone.localhost", nil, 502},
	} {
		if resp := ask(t, b.front, http.MethodGet, c.host, "/", c.headers...); resp.StatusCode != c.status {
			t.Errorf("%s: %d", c.name, resp.StatusCode)
		}
	}
}

func TestLinks(t *testing.T) {
	for _, byPath := range []bool{false, true} {
		b := newBench(t, echo, func(c *Config) {
			if byPath {
				c.Domain = ""
			}
		}, privateBox())
		server, host, base, cookiePath := b.front, boxHost, "/", "Path=/;"
		b.edge.SetAddress("http", "7700", "http://127.0.0.1:7701")
		if byPath {
			prefix := "/proxy/" + boxID + "/3000/"
			server, host, base, cookiePath = b.paths, "127.0.0.1:7701", prefix, "Path="+prefix+";"
		}
		link, expires, err := b.edge.Link(privateBox(), 3000)
		if err != nil || time.Until(expires) > LinkTime || time.Until(expires) < LinkTime-time.Minute {
			t.Fatalf("%v, %v", expires, err)
		}
		_, query, _ := strings.Cut(link, "?")
		if resp := ask(t, server, http.MethodHead, host, base+"?"+query); resp.StatusCode != http.StatusForbidden {
			t.Errorf("HEAD: %d", resp.StatusCode)
		}
		resp := ask(t, server, http.MethodGet, host, base+"?a=%2F&"+query+"&b")
		cookie := resp.Header.Get("Set-Cookie")
		if resp.StatusCode != http.StatusTemporaryRedirect || resp.Header.Get("Location") != base+"?a=%2F&b" {
			t.Fatalf("%d to %q", resp.StatusCode, resp.Header.Get("Location"))
		}
		for _, part := range []string{cookiePath, "HttpOnly", "SameSite=Lax"} {
			if !strings.Contains(cookie+";", part) {
				t.Errorf("the cookie %q has no %s", cookie, part)
			}
		}
		if strings.Contains(cookie, "Domain") || strings.Contains(cookie, boxToken) {
			t.Errorf("the cookie is %q", cookie)
		}
		pass, _, _ := strings.Cut(cookie, ";")
		if got := decode(t, ask(t, server, http.MethodGet, host, base, "Cookie", "x=y; "+pass)); got.Header.Get("Cookie") != "x=y" {
			t.Errorf("the application gets the cookies %q", got.Header.Get("Cookie"))
		}
		if resp := ask(t, server, http.MethodGet, host, base+"?"+query); resp.StatusCode != http.StatusForbidden {
			t.Errorf("a second use: %d", resp.StatusCode)
		}
		// It is for that port alone.
		other := strings.Replace(host, "3000", "3001", 1)
		if resp := ask(t, server, http.MethodGet, other, strings.Replace(base, "3000", "3001", 1), "Cookie", pass); resp.StatusCode != http.StatusForbidden {
			t.Errorf("another port: %d", resp.StatusCode)
		}
	}
}

func TestOwnCookiesStayOurs(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		for _, c := range []string{"wrenn_session=evil; Path=/", "a=b; Path=/", "__Host-wrenn_pass=x; Path=/; Secure", " wrenn_x=1"} {
			w.Header().Add("Set-Cookie", c)
		}
		echo(w, r)
	}, nil)
	resp := ask(t, b.front, http.MethodGet, boxHost, "/", "Cookie", "a=b;c=\"d;e\"", "Cookie", "wrenn_session=1; __Host-wrenn_pass=2; not_wrenn_=3")
	if got := resp.Header.Values("Set-Cookie"); len(got) != 1 || got[0] != "a=b; Path=/" {
		t.Errorf("the client gets %q", got)
	}
	if got := decode(t, resp).Header.Values("Cookie"); strings.Join(got, "|") != "a=b;c=\"d;e\"|not_wrenn_=3" {
		t.Errorf("the application gets %q", got)
	}
}

func TestTooManyWaitForAWake(t *testing.T) {
	b := newBench(t, echo, func(c *Config) { c.MaxConnections = 1 }, sandbox.Sandbox{ID: boxID, Status: sandbox.Paused, Web: sandbox.Web{AutoResume: true}})
	asked, release := make(chan struct{}), make(chan struct{})
	b.sandboxes.wake = func(string) error { close(asked); <-release; return fault.New(fault.NoSpace, "full") }
	var first sync.WaitGroup
	first.Go(func() { _ = ask(t, b.front, http.MethodGet, boxHost, "/") })
	<-asked
	gu := b.edge.guests.get(boxID)
	if done, err := gu.wait(); err == nil {
		done()
		t.Error("a second one may wait")
	}
	close(release)
	first.Wait()
	if done, err := gu.wait(); err != nil {
		t.Error("nobody may wait any more")
	} else {
		done()
	}
}

func TestLinksExpire(t *testing.T) {
	l := newLinks()
	to := target{}.Target
	if l.use(l.add(to, now().Add(-time.Second)), to) {
		t.Error("an old link was good")
	}
	for range maxLinks + 10 {
		l.add(to, now().Add(time.Minute))
	}
	if len(l.open) > maxLinks {
		t.Errorf("%d links are kept", len(l.open))
	}
}

func TestWake(t *testing.T) {
	b := newBench(t, echo, nil, sandbox.Sandbox{ID: boxID, Status: sandbox.Paused, Web: sandbox.Web{AutoResume: true}})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusOK {
				t.Errorf("answered %d", resp.StatusCode)
			}
		})
	}
	all.Wait()
	// One that is just being paused is woken when it is.
	b.sandboxes.mu.Lock()
	b.sandboxes.sealed = true
	b.sandboxes.mu.Unlock()
	if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusOK {
		t.Errorf("while it was sealed: %d", resp.StatusCode)
	}
}

// The host's word that a sandbox is paused counts for more than what is believed here.
func TestWakeOfWhatWasBelievedToRun(t *testing.T) {
	for _, autoResume := range []bool{true, false} {
		var b *bench
		b = newBench(t, func(w http.ResponseWriter, r *http.Request) {
			b.sandboxes.mu.Lock()
			woken := b.sandboxes.wakes > 0
			b.sandboxes.mu.Unlock()
			if !woken {
				webroute.Paused(webroute.Target{Sandbox: boxID, Port: 3000}).Write(w, r)
				return
			}
			serveSocket(w, r)
		}, nil, sandbox.Sandbox{ID: boxID, Status: sandbox.Running, Web: sandbox.Web{AutoResume: autoResume}})
		sleeps := func() {
			b.sandboxes.mu.Lock()
			defer b.sandboxes.mu.Unlock()
			b.sandboxes.wakes, b.sandboxes.onHost = 0, sandbox.Paused
			b.sandboxes.rows[boxID] = sandbox.Sandbox{ID: boxID, Status: sandbox.Running, Web: sandbox.Web{AutoResume: autoResume}}
		}
		sleeps()
		resp := ask(t, b.front, http.MethodGet, boxHost, "/x")
		if !autoResume {
			if got := body(t, resp); resp.StatusCode != http.StatusBadGateway || !strings.Contains(got, "The sandbox was not found") || b.sandboxes.wakes != 0 {
				t.Errorf("one that is not to be woken: %d %s, woken %d times", resp.StatusCode, got, b.sandboxes.wakes)
			}
			continue
		}
		if got := decode(t, resp); got.URI != "/proxy/"+boxID+"/3000/x" {
			t.Errorf("the request arrived as %q", got.URI)
		}
		sleeps()
		exchangeMessage(t, openSocket(t, b), "hello")
		// A body may be half gone; its sender is told to send it again.
		sleeps()
		if resp := ask(t, b.front, http.MethodPost, boxHost, "/x", "Content-Length", "0"); resp.StatusCode != http.StatusOK {
			t.Errorf("a POST without a body: %d", resp.StatusCode)
		}
		sleeps()
		resp = ask(t, b.front, http.MethodPost, boxHost, "/x", "Transfer-Encoding", "chunked")
		if got := body(t, resp); resp.StatusCode != http.StatusConflict || !strings.Contains(got, "try again") {
			t.Errorf("a POST with a body: %d %s", resp.StatusCode, got)
		}
		if resp := ask(t, b.front, http.MethodGet, boxHost, "/x"); resp.StatusCode != http.StatusOK {
			t.Errorf("after that: %d", resp.StatusCode)
		}
	}
}

func TestWakeThatFails(t *testing.T) {
	b := newBench(t, echo, nil, sandbox.Sandbox{ID: boxID, Status: sandbox.Paused, Web: sandbox.Web{AutoResume: true}})
	b.sandboxes.wake = func(string) error { return fault.New(fault.HostUnavailable, "the host has no room") }
	resp := ask(t, b.front, http.MethodGet, boxHost, "/")
	if got := body(t, resp); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(got, "no room") {
		t.Errorf("%d %s", resp.StatusCode, got)
	}
}

func TestSealedWithoutWake(t *testing.T) {
	b := newBench(t, echo, nil)
	b.sandboxes.sealed = true
	if resp := ask(t, b.front, http.MethodGet, boxHost, "/"); resp.StatusCode != http.StatusConflict {
		t.Errorf("answered %d", resp.StatusCode)
	}
}

func TestURL(t *testing.T) {
	for _, c := range []struct{ domain, scheme, port, paths, want string }{
		{"localhost", "http", "7700", "http://127.0.0.1:7701", "http://80-sb1.localhost:7700/"},
		{"example.com", "https", "", "", "https://80-sb1.example.com/"},
		{"example.com:8443", "https", "7700", "", "https://80-sb1.example.com:8443/"},
		{"", "http", "7700", "http://127.0.0.1:7701", "http://127.0.0.1:7701/proxy/sb1/80/"},
		{"", "http", "7700", "", ""},
	} {
		e := New(Config{Domain: c.domain})
		e.SetAddress(c.scheme, c.port, c.paths)
		if got := e.URL("sb1", 80); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
		patterns, named := e.Patterns(), c.want == ""
		for _, p := range patterns {
			named = named || strings.NewReplacer("PORT", "80", "SANDBOX", "sb1").Replace(p) == c.want
		}
		if !named || (len(patterns) > 0) != (c.want != "") {
			t.Errorf("%+v: %q", c, patterns)
		}
	}
}
