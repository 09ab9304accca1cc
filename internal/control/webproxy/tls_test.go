package webproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// secure starts a server like the bench's front that speaks TLS and HTTP/2, and returns a
// client that finds it under every name.
func secure(t *testing.T, b *bench) *http.Client {
	t.Helper()
	s := httptest.NewUnstartedServer(b.edge.Front(http.NotFoundHandler()))
	s.Config.ConnContext = ConnContext
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	b.edge.SetAddress("https", "", "")
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patient, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func getSecure(t *testing.T, c *http.Client, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestTLS(t *testing.T) {
	b := newBench(t, serveSocket, nil)
	c := secure(t, b)
	resp := getSecure(t, c, "https://"+boxHost+"/a//b%2Fc")
	if resp.ProtoMajor != 2 {
		t.Errorf("it came by %s", resp.Proto)
	}
	got := decode(t, resp)
	if got.URI != "/proxy/"+boxID+"/3000/a//b%2Fc" || got.Header.Get("X-Forwarded-Proto") != "https" || got.Host != boxHost {
		t.Errorf("arrived as %+v", got)
	}
	// A WebSocket comes on a connection of HTTP/1.1, and under TLS.
	plain := c.Transport.(*http.Transport).Clone()
	plain.ForceAttemptHTTP2, plain.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
	socket, _, err := websocket.Dial(t.Context(), "wss://"+boxHost+"/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: plain}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.CloseNow() })
	socket.SetReadLimit(-1)
	exchangeMessage(t, socket, "hello")
	exchangeMessage(t, socket, strings.Repeat("x", 100<<10))
	b.sandboxes.becomes(t, boxID, sandbox.Stopping)
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	if _, _, err := socket.Read(ctx); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the WebSocket ended with %v", err)
	}
}

func TestSecureCookies(t *testing.T) {
	b := newBench(t, echo, nil, privateBox())
	c := secure(t, b)
	link, _, err := b.edge.Link(privateBox(), 3000)
	if err != nil {
		t.Fatal(err)
	}
	if resp := getSecure(t, c, link); resp.StatusCode != http.StatusTemporaryRedirect ||
		!strings.HasPrefix(resp.Header.Get("Set-Cookie"), passCookieSecure+"=") || !strings.Contains(resp.Header.Get("Set-Cookie"), "Secure") {
		t.Errorf("%d, %q", resp.StatusCode, resp.Header.Get("Set-Cookie"))
	}
}

func TestHTTP2StreamsThatBreakOff(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, nil)
	resp := getSecure(t, secure(t, b), "https://"+boxHost+"/")
	if all, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("it looked complete: %q", all)
	}
}
