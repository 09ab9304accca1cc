package webproxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// Whoever merely knows the id of a private sandbox neither wakes it by the daemon's port,
// which is open to all, nor keeps it awake.
func TestStrangersAtEnvdWakeNothing(t *testing.T) {
	const host = "49983-" + boxID + ".localhost"
	paused := privateBox()
	paused.Status, paused.Web.AutoResume = sandbox.Paused, true
	b := newBench(t, echo, nil, paused)
	resp := ask(t, b.front, http.MethodGet, host, "/health")
	if got := body(t, resp); resp.StatusCode != http.StatusBadGateway || !strings.Contains(got, "The sandbox was not found") || b.sandboxes.wakes != 0 {
		t.Errorf("a stranger: %d %s, woken %d times", resp.StatusCode, got, b.sandboxes.wakes)
	}
	if resp := ask(t, b.front, http.MethodGet, host, "/health", tokenHeader, boxToken); resp.StatusCode != http.StatusOK || b.sandboxes.wakes != 1 {
		t.Errorf("with the token: %d, woken %d times", resp.StatusCode, b.sandboxes.wakes)
	}
	// Of one that is sealed to be paused a request that counts would wait for the wake.
	b.sandboxes.mu.Lock()
	b.sandboxes.sealed, b.sandboxes.wakes, b.sandboxes.touch = true, 0, 0
	b.sandboxes.mu.Unlock()
	resp = ask(t, b.front, http.MethodPost, host, "/health", "Content-Length", "0")
	b.sandboxes.mu.Lock()
	wakes, touched := b.sandboxes.wakes, b.sandboxes.touch
	b.sandboxes.mu.Unlock()
	if resp.StatusCode != http.StatusOK || wakes != 0 || touched != 0 {
		t.Errorf("a stranger, when it runs: %d, woken %d times, active %d times", resp.StatusCode, wakes, touched)
	}
	// To a public one every port is open, to wake it too.
	paused.Web.TrafficToken = ""
	b = newBench(t, echo, nil, paused)
	if resp := ask(t, b.front, http.MethodGet, host, "/health"); resp.StatusCode != http.StatusOK || b.sandboxes.wakes != 1 {
		t.Errorf("a public one: %d, woken %d times", resp.StatusCode, b.sandboxes.wakes)
	}
}

// The cookie of a browser is no leave for pages of others.
func TestForeignPagesDoNothingByACookie(t *testing.T) {
	b := newBench(t, serveSocket, nil, privateBox())
	to := webroute.Target{Sandbox: boxID, Port: 3000}
	cookie := fmt.Sprintf("%s=%s", passCookie, signPass(to, privateBox(), now().Unix()+60))
	const own = "http://" + boxHost
	for _, c := range []struct {
		method, origin string
		socket         bool
		status         int
	}{
		{http.MethodPost, own, false, 200},
		{http.MethodPost, "http://" + strings.ToUpper(boxHost) + ":80", false, 200},
		{http.MethodPost, "", false, 200},
		{http.MethodPost, "http://8000-" + boxID + ".localhost:7700", false, 200},
		{http.MethodPost, "http://3000-sbother.localhost", false, 403},
		{http.MethodDelete, "http://localhost", false, 403},
		{http.MethodPost, "null", false, 403},
		{http.MethodPost, "http://evil/" + boxHost, false, 403},
		{http.MethodGet, "http://3000-sbother.localhost", false, 200},
		{http.MethodGet, "http://3000-sbother.localhost", true, 403},
		{http.MethodGet, own, true, 101},
	} {
		headers := []string{"Content-Length", "0"}
		if c.origin != "" {
			headers = append(headers, "Origin", c.origin)
		}
		if c.socket {
			headers = append(headers, "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "MDEyMzQ1Njc4OWFiY2RlZg==")
		}
		if resp := ask(t, b.front, c.method, boxHost, "/", append(headers, "Cookie", cookie)...); resp.StatusCode != c.status {
			t.Errorf("%+v by the cookie: %d", c, resp.StatusCode)
		}
		// A token is not something that a browser adds by itself.
		if resp := ask(t, b.front, c.method, boxHost, "/", append(headers, "Cookie", cookie, tokenHeader, boxToken)...); resp.StatusCode >= http.StatusBadRequest {
			t.Errorf("%+v by the token: %d", c, resp.StatusCode)
		}
	}
}
