package webproxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// What may not be said in the header of an answer cannot be said before it or after its body
// either.
func TestInformationAndTrailersAreLookedAt(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		say := func(prefix string) {
			h[prefix+"Set-Cookie"] = []string{"wrenn_pass=evil; Path=/", "a=b; Path=/"}
			h[prefix+webroute.HeaderProblem] = []string{"paused"}
		}
		say("")
		h.Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		clear(h)
		h.Set("Trailer", "X-Sum, Set-Cookie")
		_, _ = io.WriteString(w, "body")
		_ = http.NewResponseController(w).Flush()
		say("")
		say(http.TrailerPrefix)
		h[http.TrailerPrefix+"Location"] = []string{"//evil"}
		h.Set("X-Sum", "1")
	}, nil)
	plain := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, b.front.Listener.Addr().String())
	}}
	t.Cleanup(plain.CloseIdleConnections)
	for url, client := range map[string]*http.Client{
		"http://" + boxHost + "/":  {Transport: plain, Timeout: patient},
		"https://" + boxHost + "/": secure(t, b),
	} {
		var early http.Header
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			early = http.Header(h)
			return nil
		}})
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got := body(t, resp)
		_ = resp.Body.Close() // it was read
		if early.Get("Link") == "" || !slices.Equal(early["Set-Cookie"], []string{"a=b; Path=/"}) || early.Get(webroute.HeaderProblem) != "" {
			t.Errorf("%s: early hints %v", url, early)
		}
		if got != "body" || resp.Trailer.Get("X-Sum") != "1" {
			t.Errorf("%s: %q with the trailer %v", url, got, resp.Trailer)
		}
		for _, name := range []string{"Set-Cookie", "Location", webroute.HeaderProblem} {
			if len(resp.Trailer[name]) > 0 || len(resp.Header[name]) > 0 {
				t.Errorf("%s: %s came in %v or %v", url, name, resp.Header, resp.Trailer)
			}
		}
	}
}

// An application says something about its origin where that is its own.
func TestHeadersAboutTheOrigin(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Clear-Site-Data", "NEL", "Report-To", "Reporting-Endpoints", "Strict-Transport-Security"} {
			w.Header().Set(name, "x")
		}
	}, nil, sandbox.Sandbox{ID: boxID, Status: sandbox.Running})
	count := func(resp *http.Response) (n int) {
		for _, name := range aboutOrigin {
			n += len(resp.Header.Values(name))
		}
		return n
	}
	if n := count(ask(t, b.front, http.MethodGet, boxHost, "/")); n != len(aboutOrigin) {
		t.Errorf("by name %d of them come", n)
	}
	for _, root := range []string{"/proxy/", "/absproxy/"} {
		if n := count(ask(t, b.paths, http.MethodGet, "127.0.0.1", root+boxID+"/3000/")); n != 0 {
			t.Errorf("at %s %d of them come", root, n)
		}
	}
	if n := count(ask(t, b.front, http.MethodGet, "127.0.0.1", "/", sandboxHeader, boxID, portHeader, "3000")); n != 0 {
		t.Errorf("by headers %d of them come", n)
	}
}
