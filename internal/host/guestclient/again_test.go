package guestclient

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// breaking is a guest that breaks the connection of the requests that are named by their
// number, from 1 on, when it has read them.
func breaking(t *testing.T, numbers ...int32) (*Client, *atomic.Int32) {
	t.Helper()
	var asked atomic.Int32
	return hostile(t, func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		for _, at := range numbers {
			if n == at {
				panic(http.ErrAbortHandler)
			}
		}
		if r.Header.Get("Content-Type") == "application/proto" {
			w.Header().Set("Content-Type", "application/proto")
			return // an empty message
		}
		_, _ = w.Write([]byte(`{"ports":[]}`))
	}), &asked
}

// What changes nothing survives a connection that breaks, new or kept; what changes something
// is asked once.
func TestWhatChangesNothingIsAskedAgain(t *testing.T) {
	calls := map[string]struct {
		call  func(context.Context, *Client) error
		again bool
	}{
		"read": {func(ctx context.Context, c *Client) error {
			body, _, err := c.ReadFile(ctx, "/f", "")
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, body)
			return errors.Join(err, body.Close())
		}, true},
		"stat":  {func(ctx context.Context, c *Client) error { _, err := c.Stat(ctx, "/f", ""); return err }, true},
		"list":  {func(ctx context.Context, c *Client) error { _, err := c.List(ctx, "/f", "", 1); return err }, true},
		"ports": {func(ctx context.Context, c *Client) error { _, err := c.Ports(ctx); return err }, true},
		"ps":    {func(ctx context.Context, c *Client) error { _, err := c.Processes(ctx); return err }, true},
		"write": {func(ctx context.Context, c *Client) error {
			return c.WriteFile(ctx, "/f", "", strings.NewReader("x"), 1)
		}, false},
		"remove": {func(ctx context.Context, c *Client) error { return c.Remove(ctx, "/f", "") }, false},
	}
	for name, test := range calls {
		c, asked := breaking(t, 1)
		err := test.call(t.Context(), c)
		if test.again && (err != nil || asked.Load() != 2) {
			t.Errorf("%s on a new connection: asked %d times: %v", name, asked.Load(), err)
		}
		if !test.again && (!fault.Is(err, fault.AgentError) || asked.Load() != 1) {
			t.Errorf("%s: asked %d times: %v", name, asked.Load(), err)
		}
		if !test.again {
			continue
		}
		c, asked = breaking(t, 2)
		for range 2 {
			if err := test.call(t.Context(), c); err != nil {
				t.Errorf("%s on a connection that was kept: asked %d times: %v", name, asked.Load(), err)
			}
		}
		c, asked = breaking(t, 1, 2, 3, 4)
		if err := test.call(t.Context(), c); !fault.Is(err, fault.AgentError) || asked.Load() > 3 {
			t.Errorf("%s of a guest that never answers: asked %d times: %v", name, asked.Load(), err)
		}
	}
}

// A guest that closes what it takes for idle in the very moment in which it is used, as envd
// does when it comes to rest, and resets it.
func TestAReadSurvivesTheClosingOfIdleConnections(t *testing.T) {
	var server *httptest.Server
	var kept atomic.Pointer[net.TCPConn]
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("x")) }))
	server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if tcp, ok := conn.(*net.TCPConn); ok && state == http.StateIdle {
			_ = tcp.SetLinger(0)
			kept.Store(tcp)
		}
	}
	server.Start()
	defer server.Close()
	c := New(server.Listener.Addr(), "token")
	defer c.Close()
	for i := range 200 {
		if old := kept.Swap(nil); old != nil {
			go func(wait time.Duration) { <-time.After(wait); _ = old.Close() }(time.Duration(i) * time.Microsecond)
		}
		body, _, err := c.ReadFile(t.Context(), "/f", "")
		if err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
		got, err := io.ReadAll(body)
		_ = body.Close()
		if err != nil && len(got) > 0 { // an answer that broke off is no answer, and is seen
			t.Errorf("read %d: %q, %v", i, got, err)
		}
	}
}
