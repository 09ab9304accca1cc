package guestclient

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// hostile is a program that root of a guest has put in envd's place.
func hostile(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c := New(server.Listener.Addr(), "token")
	t.Cleanup(c.Close)
	return c
}

// calls are one call of each kind that the host makes.
func (c *Client) calls(ctx context.Context) map[string]error {
	_, _, readErr := c.ReadFile(ctx, "/f", "")
	_, listErr := c.Processes(ctx)
	_, statErr := c.Stat(ctx, "/f", "")
	return map[string]error{
		"read": readErr, "write": c.WriteFile(ctx, "/f", "", strings.NewReader("x"), 1),
		"init": c.Init(ctx, Init{}), "list": listErr, "stat": statErr,
		"start": c.Start(ctx, Command{Cmd: "true"}, func(Event) error { return nil }),
	}
}

func TestRedirectsOfAGuestLeadNowhere(t *testing.T) {
	secret := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the host was led to %s with the token %q", r.URL, r.Header.Get(accessTokenHeader))
	}))
	defer secret.Close()
	for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, secret.URL+"/latest/meta-data", status)
		})
		for call, err := range c.calls(t.Context()) {
			if err == nil {
				t.Errorf("%s took a redirect %d for an answer", call, status)
			}
		}
	}
}

func TestOversizeMessagesAreRefused(t *testing.T) {
	plain := bytes.Repeat([]byte{0}, maxMessage+1)
	var bomb bytes.Buffer
	zipped := gzip.NewWriter(&bomb)
	if _, err := zipped.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]http.HandlerFunc{
		"large": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			_, _ = w.Write(plain) // cut off by the client
		},
		"packed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb.Bytes())
		},
		"headers": func(w http.ResponseWriter, _ *http.Request) {
			for i := range 2 * maxHeaders / 1024 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1024))
			}
		},
	} {
		if _, err := hostile(t, answer).Processes(t.Context()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, maxMessage+1)
	c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/connect+proto")
		_, _ = w.Write(append(frame, plain...))
	})
	if err := c.Start(t.Context(), Command{Cmd: "true"}, func(Event) error { return nil }); err == nil {
		t.Error("a large event was accepted")
	}
}

func TestAMuteGuestEndsWithTheCallersPatience(t *testing.T) {
	silence := make(chan struct{})
	c := hostile(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-silence:
		case <-r.Context().Done():
		}
	})
	defer close(silence)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for call, err := range c.calls(ctx) {
		if !fault.Is(err, fault.DeadlineExceeded) {
			t.Errorf("%s: %v", call, err)
		}
	}
}

func TestStatusesKeepTheirMeaning(t *testing.T) {
	for status, code := range map[int]fault.Code{
		400: fault.InvalidRequest, 401: fault.InvalidRequest, 403: fault.Forbidden, 404: fault.NotFound, 406: fault.NotAcceptable,
		409: fault.InvalidState, 413: fault.PayloadTooLarge, 429: fault.RateLimited, 507: fault.NoSpace, 500: fault.AgentError, 204 + 100: fault.AgentError,
	} {
		c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"code":%d,"message":"why"}`, status)
		})
		if _, _, err := c.ReadFile(t.Context(), "/f", ""); !fault.Is(err, code) {
			t.Errorf("%d became %v (%s)", status, err, fault.CodeOf(err))
		}
	}
}

// FuzzOffset reads anything that a guest may say of where its output begins.
func FuzzOffset(f *testing.F) {
	for _, seed := range []string{"", "0,0", "4096,7", "18446744073709551615,0", "18446744073709551616,0", "-1,0", "1", ",", "1,2,3", "\xff,1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at := parseOffset(text)
		if at == nil {
			return
		}
		if again := parseOffset(fmt.Sprintf("%d,%d", at.Stdout, at.Stderr)); again == nil || *again != *at {
			t.Fatalf("%q is %+v, and then %+v", text, at, again)
		}
	})
}
