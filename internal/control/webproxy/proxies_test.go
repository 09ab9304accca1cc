package webproxy

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

// What a proxy in front of us says is passed on, with the proxy itself at the end.
func TestTrustedProxiesAreBelieved(t *testing.T) {
	said := []string{"X-Forwarded-For", "6.6.6.6", "X-Forwarded-For", "7.7.7.7, 8.8.8.8", "X-Forwarded-Host", "app.example.com", "X-Forwarded-Proto", "https",
		"X-Forwarded-Prefix", "/x", "X-Forwarded-Port", "1", "Forwarded", "for=6.6.6.6"}
	for network, believed := range map[string]bool{"127.0.0.0/8": true, "10.0.0.0/8": false, "::/0": false} {
		b := newBench(t, echo, func(c *Config) {
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix(network)}
		}, privateBox())
		want := map[string]string{headerFor: "127.0.0.1", headerHost: boxHost, headerProto: "http"}
		if believed {
			want = map[string]string{headerFor: "6.6.6.6, 7.7.7.7, 8.8.8.8, 127.0.0.1", headerHost: "app.example.com", headerProto: "https"}
		}
		token := []string{tokenHeader, boxToken}
		got := decode(t, ask(t, b.front, http.MethodGet, boxHost, "/", append(token, said...)...)).Header
		for name := range got {
			if strings.Contains(name, "Forwarded") && (len(got[name]) != 1 || got[name][0] != want[name]) {
				t.Errorf("from %s: %s arrived as %q, not %q", network, name, got[name], want[name])
			}
			delete(want, name)
		}
		if len(want) > 0 {
			t.Errorf("from %s: these did not arrive: %v", network, want)
		}
		// One that says nothing, or what is none, is told from what it does.
		got = decode(t, ask(t, b.front, http.MethodGet, boxHost, "/", append(token, "X-Forwarded-Proto", "gopher")...)).Header
		if got.Get(headerFor) != "127.0.0.1" || got.Get(headerHost) != boxHost || got.Get(headerProto) != "http" {
			t.Errorf("from %s, who says nothing: %v", network, got)
		}
		// The cookie of a browser that came by TLS is for TLS alone.
		b.edge.SetAddress("http", "", "")
		link, _, err := b.edge.Link(privateBox(), 3000)
		if err != nil {
			t.Fatal(err)
		}
		_, query, _ := strings.Cut(link, "?")
		resp := ask(t, b.front, http.MethodGet, boxHost, "/?"+query, "X-Forwarded-Proto", "https")
		if cookie := resp.Header.Get("Set-Cookie"); cookie == "" || strings.Contains(cookie, "Secure") != believed {
			t.Errorf("from %s: the cookie is %q", network, cookie)
		}
	}
}

func TestNamesLikeThoseOfProxiesAreDropped(t *testing.T) {
	b := newBench(t, echo, nil)
	said := []string{"X_Forwarded_For", "x-forwarded_host", "X-Forwarded", "X_Forwarded", "X-Scheme", "True-Client-Ip", "true_client_ip", "X-Original-Url", "X_Original_URL",
		"X-Rewrite-Url", "Forwarded", "X-Real_Ip", "Cf-Connecting-Ip", "X-Client-Ip", "Front-End-Https"}
	headers := []string{"X-Mine", "kept", "X_Mine", "kept"}
	for _, name := range said {
		headers = append(headers, name, "6.6.6.6")
	}
	got := decode(t, ask(t, b.front, http.MethodGet, boxHost, "/", headers...)).Header
	for name, values := range got {
		if strings.Contains(strings.Join(values, ","), "6.6.6.6") {
			t.Errorf("%s arrived", name)
		}
	}
	if got.Get("X-Mine") != "kept" || got.Get("X_Mine") != "kept" {
		t.Errorf("an application's own headers did not arrive: %v", got)
	}
}
