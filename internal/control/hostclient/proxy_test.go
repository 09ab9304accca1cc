package hostclient

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hand is an agent in this process.
type hand func(*http.Request) (*http.Response, error)

func (h hand) RoundTrip(r *http.Request) (*http.Response, error) { return h(r) }

// An agent at hand gets what has no body, and all else comes to it by the socket.
func TestRequestsWithoutABodyGoToTheAgentAtHand(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "host.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	agent := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, io.MultiReader(strings.NewReader("by the socket "), r.Body))
	})}
	go func() { _ = agent.Serve(listener) }()
	t.Cleanup(func() { _ = agent.Close() })
	near := hand(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("at hand"))}, nil
	})
	for _, c := range []struct {
		near               http.RoundTripper
		method, body, want string
	}{
		{near, http.MethodGet, "", "at hand"},
		{near, http.MethodPost, "", "by the socket "},
		{near, http.MethodPost, "x", "by the socket x"},
		{near, http.MethodGet, "x", "by the socket x"},
		{nil, http.MethodGet, "", "by the socket "},
	} {
		transport := NewProxyTransport(socket, c.near)
		r, err := http.NewRequestWithContext(t.Context(), c.method, "http://host/", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != c.want {
			t.Errorf("%s with %q went %q, %v", c.method, c.body, got, err)
		}
		transport.Close()
	}
}
