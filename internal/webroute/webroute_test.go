package webroute

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const id = "sb0123456789abcdefghij"

func TestParseHost(t *testing.T) {
	good := Target{id, 3000}
	for _, c := range []struct {
		host, domain string
		want         Target
		ours         bool
		message      string
	}{
		{"3000-" + id + ".example.com", "example.com", good, true, ""},
		{"3000-" + id + ".example.com:8443", "example.com", good, true, ""},
		{"3000-" + id + ".example.com.", "example.com:7700", good, true, ""},
		{"3000-" + id + ".example.com.:80", ".Example.Com.", good, true, ""},
		{"3000-" + strings.ToUpper(id) + ".EXAMPLE.com", "example.com", good, true, ""},
		{"3000-" + id + "-client.example.com", "example.com", good, true, ""},
		{"3000-" + id + "-a-b.localhost:1", "localhost", good, true, ""},
		{"example.com", "example.com", Target{}, false, ""},
		{"api.example.com", "example.com", Target{}, false, ""},
		{"3000-" + id + ".example.org", "example.com", Target{}, false, ""},
		{"3000-" + id + ".notexample.com", "example.com", Target{}, false, ""},
		{"3000-" + id, "example.com", Target{}, false, ""},
		{"3000-" + id + ".", "", Target{}, false, ""},
		{"", "", Target{}, false, ""},
		{"[::1]:80", "example.com", Target{}, false, ""},
		{"[::1-2.example.com]", "example.com", Target{}, false, ""},
		{"127.0.0.1", "localhost", Target{}, false, ""},
		{"3000-" + id + ".evil.example.com", "example.com", Target{}, true, "Invalid host"},
		{"0-" + id + ".example.com", "example.com", Target{}, true, "Invalid sandbox port"},
		{"65536-" + id + ".example.com", "example.com", Target{}, true, "Invalid sandbox port"},
		{"abc-" + id + ".example.com", "example.com", Target{}, true, "Invalid sandbox port"},
		{"03000-" + id + ".example.com", "example.com", Target{}, true, "Invalid sandbox port"},
		{"+1-" + id + ".example.com", "example.com", Target{}, true, "Invalid sandbox port"},
		{"-" + id + ".example.com", "example.com", Target{}, true, "Invalid sandbox port"},
		{"1--.example.com", "example.com", Target{}, true, "Invalid sandbox ID"},
		{"1-a_b.example.com", "example.com", Target{}, true, "Invalid sandbox ID"},
		{"1-" + strings.Repeat("a", 64) + ".example.com", "example.com", Target{}, true, "Invalid sandbox ID"},
	} {
		got, ours, err := ParseHost(c.host, c.domain)
		if ours != c.ours || (err != nil) != (c.message != "") || err == nil && got != c.want {
			t.Errorf("ParseHost(%q, %q) = %v, %v, %v", c.host, c.domain, got, ours, err)
		}
		if err != nil && (fault.CodeOf(err) != fault.InvalidRequest || fault.MessageOf(err) != c.message) {
			t.Errorf("ParseHost(%q): %v", c.host, err)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		path, rest string
		want       Target
		code       fault.Code
	}{
		{"/proxy/" + id + "/80/a//b%2Fc/../d", "/a//b%2Fc/../d", Target{id, 80}, ""},
		{"/proxy/" + id + "/80", "", Target{id, 80}, ""},
		{"/proxy/" + id + "/80//", "//", Target{id, 80}, ""},
		{"/proxy/" + id + "/65535/", "/", Target{id, 65535}, ""},
		{"/proxy/" + id + "/65536/", "", Target{}, fault.InvalidRequest},
		{"/proxy/" + id + "/0/", "", Target{}, fault.InvalidRequest},
		{"/proxy/" + id + "/abc/", "", Target{}, fault.InvalidRequest},
		{"/proxy/" + id, "", Target{}, fault.InvalidRequest},
		{"/proxy//80/", "", Target{}, fault.InvalidRequest},
		{"/proxy/../80/", "", Target{}, fault.InvalidRequest},
		{"/proxy/%73b/80/", "", Target{}, fault.InvalidRequest},
		{"//proxy/" + id + "/80/", "", Target{}, fault.NotFound},
		{"/v1/sandboxes", "", Target{}, fault.NotFound},
		{"*", "", Target{}, fault.NotFound},
		{"", "", Target{}, fault.NotFound},
	} {
		got, rest, err := Split(c.path)
		if fault.CodeOf(err) != c.code || err == nil && (got != c.want || rest != c.rest) {
			t.Errorf("Split(%q) = %v, %q, %v", c.path, got, rest, err)
		}
	}
}

func TestIsControl(t *testing.T) {
	for _, p := range []string{
		"/init", "//init", "/init/", "/%69nit", "/%2569nit", "/./init", "/files/../init", "/a/b/../../init", "/../init",
		"/files%2f..%2finit", "/INIT", "\\init", "/init;a=b", "/init?x=1", "/init%20", "/freeze", "/unfreeze", "/collapse",
		"/fsfreeze", "/fsthaw", "/upgrade", "/snapshot/prepare", "/snapshot%2Fprepare", "//snapshot//x", "/snapshot", "init",
	} {
		if !IsControl(p) {
			t.Errorf("%q is let through", p)
		}
	}
	for _, p := range []string{"/", "", "/files", "/files/init", "/initial", "/process.Process/Start", "/health", "/files?path=/init", "/%zz"} {
		if IsControl(p) {
			t.Errorf("%q is refused", p)
		}
	}
}

func TestMask(t *testing.T) {
	if got := MaskHost("localhost:${PORT}", 3000); got != "localhost:3000" {
		t.Error(got)
	}
	for _, c := range [][2]string{
		{"https://3000-SB.example.com", "https://localhost:3000"},
		{"http://3000-sb.example.com", "http://localhost:3000"},
		{"https://evil.example.com", "https://evil.example.com"},
		{"null", "null"}, {"", ""},
	} {
		if got := MaskOrigin(c[0], "3000-sb.example.com", "localhost:3000"); got != c[1] {
			t.Errorf("MaskOrigin(%q) = %q", c[0], got)
		}
	}
}

func TestProblem(t *testing.T) {
	ask := func(p Problem, agent, accept string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header.Set("User-Agent", agent)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		p.Write(w, r)
		return w
	}
	const browser, page = "Mozilla/5.0 (X11; Linux x86_64) Chrome/130", "text/html,application/xhtml+xml,*/*;q=0.8"
	for _, c := range []struct {
		p    Problem
		want string
	}{
		{NotFound(Target{id, 80}), `{"sandboxId":"` + id + `","message":"The sandbox was not found","code":502}`},
		{Paused(Target{id, 80}), `{"sandboxId":"` + id + `","message":"The sandbox was not found","code":502}`},
		{Closed(Target{id, 80}), `{"sandboxId":"` + id + `","message":"The sandbox is running but port is not open","port":80,"code":502}`},
	} {
		for _, client := range [][2]string{{"e2b-js-sdk/2.51", "*/*"}, {"curl/8", "text/html"}, {browser, "application/json"}} {
			w := ask(c.p, client[0], client[1])
			if got := strings.TrimSpace(w.Body.String()); got != c.want || w.Code != http.StatusBadGateway ||
				w.Header().Get("Content-Type") != "application/json" || w.Header().Get(HeaderProblem) != string(c.p.Kind) {
				t.Errorf("%v: %d %v %s", client, w.Code, w.Header(), got)
			}
			if !json.Valid(w.Body.Bytes()) {
				t.Error("no JSON")
			}
		}
	}
	p := Closed(Target{id, 80})
	p.Message = "<script>"
	w := ask(p, browser, page)
	if body := w.Body.String(); !strings.Contains(body, "&lt;script&gt;") || strings.Contains(body, "<script") || !strings.Contains(body, id) {
		t.Error(body)
	}
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") || w.Code != http.StatusBadGateway {
		t.Error(w.Header())
	}
}

func FuzzParseHost(f *testing.F) {
	for _, h := range []string{"3000-sb1.example.com", "3000-sb1.EXAMPLE.com.:1", "[::1]:1", "-.example.com", "0-a.example.com", "a.b-c.example.com"} {
		f.Add(h, "example.com")
	}
	f.Fuzz(func(t *testing.T, host, domain string) {
		got, ours, err := ParseHost(host, domain)
		if !ours && err != nil || err == nil && ours != (got.Port != 0) {
			t.Fatalf("ParseHost(%q, %q) = %v, %v, %v", host, domain, got, ours, err)
		}
		if err == nil && ours {
			// What it means can be said in the plain form, and means the same then.
			plain := strings.TrimPrefix(got.Prefix(), root)
			parts := strings.Split(plain, "/")
			if len(parts) != 2 || !validID(parts[0]) {
				t.Fatalf("ParseHost(%q, %q) = %v", host, domain, got)
			}
			again, ours, err := ParseHost(parts[1]+"-"+parts[0]+".example.com", "example.com")
			if !ours || err != nil || again != got {
				t.Fatalf("%v is %v, %v, %v", got, again, ours, err)
			}
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add("/proxy/" + id + "/80/a//b")
	f.Add("/proxy/" + id + "/80")
	f.Add("/proxy/../1")
	f.Add("/absproxy/" + id + "/80/a//b")
	f.Fuzz(func(t *testing.T, p string) {
		if whole, prefix, err := SplitWhole(p); err == nil {
			rest, inside := strings.CutPrefix(p, prefix)
			if prefix != wholeRoot+strings.TrimPrefix(whole.Prefix(), root) || !inside || rest != "" && rest[0] != '/' || !IsWhole(p) {
				t.Fatalf("SplitWhole(%q) = %v, %q", p, whole, prefix)
			}
		}
		target, rest, err := Split(p)
		if err == nil && (target.Prefix()+rest != p || rest != "" && rest[0] != '/') {
			t.Fatalf("Split(%q) = %v, %q", p, target, rest)
		}
	})
}
