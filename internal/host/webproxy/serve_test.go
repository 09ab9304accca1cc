package webproxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/relay/relaytest"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

func TestEveryHTTP(t *testing.T) {
	relaytest.Run(t, func(t *testing.T, server http.Handler) (string, *http.Client) {
		b := withApp(t, server, Config{})
		return b.front.URL + b.prefix(), b.client
	})
}

// The application gets what the client sent, byte for byte, and answers to the client.
func TestRequestsArriveAsTheyWereSent(t *testing.T) {
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.RequestURI)
	}), Config{})
	for _, path := range []string{
		"/", "//", "/a//b", "/a%2Fb", "/a/../b", "/./x/", "/%2e%2e/x", "/?", "/?a=1;b=2&c=%zz", "/a?b?c", "/{x}|y", "/ü", "/%E2%82%AC", "//a//b%2F?q", "/a:b@c", "/http://evil/",
	} {
		_, answer := b.raw("GET PREFIX" + path + " HTTP/1.1\r\nHost: some.host:81\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(answer, nil)
		if err != nil {
			t.Fatal(path, err)
		}
		if got, want := b.text(resp), "GET some.host:81 "+path; got != want {
			t.Errorf("%q arrived as %q", want, got)
		}
	}
	resp := b.get("")
	if got := b.text(resp); !strings.HasSuffix(got, " /") {
		t.Errorf("the bare prefix arrived as %q", got)
	}
}

func TestHeadersOfOneConnectionDoNotPass(t *testing.T) {
	seen := make(chan http.Header, 1)
	b := withApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		w.Header().Set(webroute.HeaderProblem, "made up")
		w.Header().Set("Connection", "X-Own")
		w.Header().Set("X-Own", "1")
		w.Header()["Content-Type"] = nil
		_, _ = w.Write([]byte("<html>"))
	}), Config{})
	_, answer := b.raw("GET PREFIX/ HTTP/1.1\r\nHost: h\r\nConnection: close, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers, gzip\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nOrigin: http://h\r\n\r\n")
	resp, err := http.ReadResponse(answer, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.text(resp)
	got := <-seen
	for _, name := range []string{"Connection", "X-Drop", "Keep-Alive", "Proxy-Connection", "User-Agent", "Accept-Encoding"} {
		if v, there := got[name]; there {
			t.Errorf("%s: %q arrived", name, v)
		}
	}
	for name, want := range map[string]string{"Te": "trailers", "X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https", "Origin": "http://h"} {
		if got.Get(name) != want {
			t.Errorf("%s arrived as %q", name, got.Get(name))
		}
	}
	for _, name := range []string{webroute.HeaderProblem, "X-Own", "Content-Type"} {
		if v, there := resp.Header[name]; there {
			t.Errorf("%s: %q came back", name, v)
		}
	}
}
