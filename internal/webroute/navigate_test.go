package webroute

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

var app = App{
	Target: Target{id, 3000}, Host: "3000-" + id + ".example.com:7700", Address: netip.MustParseAddr("10.113.0.2"), Path: "/a/b/c",
}

const prefix = "/proxy/" + id + "/3000"

func TestRewriteAndStripAddresses(t *testing.T) {
	masked := app
	masked.Host, masked.Original = "localhost:3000", app.Host
	plain := app
	plain.Host = "3000-" + id + ".example.com"
	for _, c := range []struct {
		app                App
		ref, want, atLocal string // as the application sends it, under the prefix, stripped
	}{
		{app, "/login?next=/x#y", prefix + "/login?next=/x#y", "/login?next=/x#y"},
		{app, "/", prefix + "/", "/"},
		{app, "/a%2Fb//c/", prefix + "/a%2Fb//c/", "/a%2Fb//c/"},
		{app, prefix + "/tree", prefix + "/tree", "/tree"},
		{app, prefix, prefix, "/"},
		{app, prefix + "1/x", prefix + prefix + "1/x", prefix + "1/x"},
		{app, "x/y", "x/y", "x/y"},
		{app, "?q=1", "?q=1", "?q=1"},
		{app, "#top", "#top", "#top"},
		{app, "", "", ""},
		{app, "x?to=../y", "x?to=../y", "x?to=../y"},
		{app, "../x", prefix + "/a/x", "/a/x"},
		{app, "../../../../x/?q", prefix + "/x/?q", "/x/?q"},
		{app, "..", prefix + "/a/", "/a/"},
		{app, "http://" + app.Host + "/x", prefix + "/x", "/x"},
		{app, "HTTPS://" + strings.ToUpper(app.Host) + "/x", prefix + "/x", "/x"},
		{app, "http://" + app.Host, prefix + "/", "/"},
		{app, "http://" + app.Host + "?q", prefix + "/?q", "/?q"},
		{app, "//" + app.Host + "/x", prefix + "/x", "/x"},
		{app, "http://3000-" + id + ".example.com/x", "http://3000-" + id + ".example.com/x", "http://3000-" + id + ".example.com/x"},
		{plain, "http://3000-" + id + ".example.com:80/x", prefix + "/x", "/x"},
		{plain, "https://3000-" + id + ".example.com./x", prefix + "/x", "/x"},
		{plain, "https://3000-" + id + ".example.com:80/x", "https://3000-" + id + ".example.com:80/x", "https://3000-" + id + ".example.com:80/x"},
		{app, "http://localhost:3000/x", prefix + "/x", "/x"},
		{app, "http://127.0.0.1:3000/x", prefix + "/x", "/x"},
		{app, "http://0.0.0.0:3000/x", prefix + "/x", "/x"},
		{app, "http://[::1]:3000/x", prefix + "/x", "/x"},
		{app, "http://10.113.0.2:3000/x", prefix + "/x", "/x"},
		{app, "http://10.113.0.6:3000/x", "http://10.113.0.6:3000/x", "http://10.113.0.6:3000/x"},
		{app, "http://localhost:3001/x", "http://localhost:3001/x", "http://localhost:3001/x"},
		{app, "http://localhost/x", "http://localhost/x", "http://localhost/x"},
		{masked, "http://localhost:3000/x", prefix + "/x", "/x"},
		{masked, "http://" + app.Host + "/x", prefix + "/x", "/x"},
		{app, "https://example.org/x", "https://example.org/x", "https://example.org/x"},
		{app, "//example.org/x", "//example.org/x", "//example.org/x"},
		{app, "http://user@" + app.Host + "/x", prefix + "/x", "/x"},
		{app, "//user:p@ss@" + app.Host + "/x?q", prefix + "/x?q", "/x?q"},
		{app, "http://" + app.Host + "@example.org/x", "http://" + app.Host + "@example.org/x", "http://" + app.Host + "@example.org/x"},
		{app, "http://example.org/@" + app.Host + "/x", "http://example.org/@" + app.Host + "/x", "http://example.org/@" + app.Host + "/x"},
		{app, "mailto:a@b", "mailto:a@b", "mailto:a@b"},
		{app, "javascript:x", "javascript:x", "javascript:x"},
		{app, "x:y/z", "x:y/z", "x:y/z"},
		// What browsers take for other spellings of these.
		{app, "http:/x", prefix + "/x", "/x"},
		{app, "https:/../x?q", prefix + "/x?q", "/x?q"},
		{app, "http:x/y", "x/y", "x/y"},
		{app, "http:../../../x", prefix + "/x", "/x"},
		{app, "ht\ttp:/x", prefix + "/x", "/x"},
		{app, "http:\\\\" + app.Host + "\\x", prefix + "/x", "/x"},
		{app, "http:////" + app.Host + "/x", prefix + "/x", "/x"},
		{app, "///" + app.Host + "/x", prefix + "/x", "/x"},
		{app, "http:\\\\example.org/x", "http:\\\\example.org/x", "http:\\\\example.org/x"},
		{app, "\\x", prefix + "/x", "/x"},
		{app, "\\\\" + app.Host + "/x", prefix + "/x", "/x"},
		{app, "\\\\example.org", "\\\\example.org", "\\\\example.org"},
		{app, "..\\..\\..\\x", prefix + "/x", "/x"},
		{app, "%2e%2E/.%2e/..%5cx", prefix + "/..%5cx", "/..%5cx"},
		{app, ".\t./.\t./x", prefix + "/x", "/x"},
		{app, "/../../proxy/other/80/", prefix + "/proxy/other/80/", "/proxy/other/80/"},
		{app, "/..\\..\\x", prefix + "/x", "/x"},
		{app, prefix + "/../../other/80/?..", prefix + "/proxy/other/80/?..", "/proxy/other/80/?.."},
		{app, "/a//../b/./c/..?../d", prefix + "/a/b/?../d", "/a/b/?../d"},
		{app, "/a/./b", prefix + "/a/./b", "/a/./b"},
		{app, "http://" + app.Host + "/..", prefix + "/", "/"},
		// What would lead elsewhere once the prefix is off stays with the application.
		{app, "http://" + app.Host + "//evil.example/x", prefix + "//evil.example/x", "/.//evil.example/x"},
		{app, "/\\evil.example", prefix + "/\\evil.example", "/./\\evil.example"},
		{app, "/\t/evil.example", prefix + "/\t/evil.example", "/./\t/evil.example"},
		{app, prefix + "//evil.example", prefix + "//evil.example", "/.//evil.example"},
	} {
		for _, name := range []string{"Location", "Content-Location", "Service-Worker-Allowed"} {
			h := http.Header{name: {c.ref}}
			Rewrite(h, c.app)
			if got := h.Get(name); got != c.want {
				t.Errorf("%s: %q is %q under the prefix, not %q", name, c.ref, got, c.want)
			}
			Strip(h, prefix)
			if got := h.Get(name); got != c.atLocal {
				t.Errorf("%s: %q is %q stripped, not %q", name, c.ref, got, c.atLocal)
			}
		}
	}
}

func TestRewriteAndStripOthers(t *testing.T) {
	for _, c := range []struct{ name, sent, want, stripped string }{
		{"Refresh", "5; url=/x", "5; url=" + prefix + "/x", "5; url=/x"},
		{"Refresh", "0;URL='/x'", "0;URL='" + prefix + "/x'", "0;URL='/x'"},
		{"Refresh", `0, url = "http://localhost:3000/x" z`, `0, url = "` + prefix + `/x" z`, `0, url = "/x" z`},
		{"Refresh", "0;/x", "0;" + prefix + "/x", "0;/x"},
		{"Refresh", "5", "5", "5"},
		{"Refresh", "5; url=https://example.org/", "5; url=https://example.org/", "5; url=https://example.org/"},
		{"Refresh", "5;", "5;", "5;"},
		{"Set-Cookie", "a=b", "a=b", "a=b"},
		{"Set-Cookie", "a=b; Path=/; HttpOnly", "a=b; Path=" + prefix + "/; HttpOnly", "a=b; Path=/; HttpOnly"},
		{"Set-Cookie", "a=b;path=/x;Secure", "a=b; Path=" + prefix + "/x;Secure", "a=b; Path=/x;Secure"},
		{"Set-Cookie", "a=b; Path=x", "a=b; Path=x", "a=b; Path=x"},
		{"Set-Cookie", "a=b; Path=", "a=b; Path=", "a=b; Path="},
		{"Set-Cookie", "a=b; Path=" + prefix + "/x", "a=b; Path=" + prefix + "/x", "a=b; Path=/x"},
		{"Set-Cookie", "a=b; Domain=example.com; Path=/; SameSite=Lax", "a=b; Path=" + prefix + "/; SameSite=Lax", "a=b; Path=/; SameSite=Lax"},
		{"Set-Cookie", "path=/; DOMAIN=.example.com", "path=/", "path=/"},
		{"Alt-Svc", `h3="evil:1"`, "", ""},
		{"Link", "</x>; rel=preload", "</x>; rel=preload", "</x>; rel=preload"},
	} {
		h := http.Header{c.name: {c.sent}}
		Rewrite(h, app)
		if got := h.Get(c.name); got != c.want {
			t.Errorf("%s: %q is %q, not %q", c.name, c.sent, got, c.want)
		}
		Strip(h, prefix)
		if got := h.Get(c.name); got != c.stripped {
			t.Errorf("%s: %q is %q stripped, not %q", c.name, c.sent, got, c.stripped)
		}
	}
}

func FuzzRewrite(f *testing.F) {
	for _, s := range []string{"/x", "//x", "../x", "http://localhost:3000/x", "5;url=/x", "a=b; Path=/; Domain=x", prefix + "//x", "/\\x", "/\t/x"} {
		f.Add(s, "/a/b")
	}
	self, err := url.Parse("http://" + app.Host + "/a/b")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, v, at string) {
		a := app
		a.Path = at
		for _, name := range []string{"Location", "Refresh", "Set-Cookie"} {
			h := http.Header{name: {v}}
			Rewrite(h, a)
			once := h.Get(name)
			Rewrite(h, a)
			if twice := h.Get(name); twice != once {
				t.Fatalf("%s %q is %q, and %q when it is done again", name, v, once, twice)
			}
			Strip(h, prefix)
			stripped := h.Get(name)
			if name != "Location" || stripped == once {
				continue
			}
			// Whatever had the prefix leads to the application's own origin without it.
			u, err := self.Parse(stripped)
			if err == nil && u.Host != self.Host || strings.HasPrefix(stripped, "//") || strings.HasPrefix(stripped, "/\\") {
				t.Fatalf("%q is stripped to %q, which leads to another host", v, stripped)
			}
		}
	})
}

// Wherever an address leads on the origin of the request, as browsers read it, that is under
// the prefix.
func FuzzRewriteStays(f *testing.F) {
	for _, s := range []string{"/x", "http:/x", "..\\..\\..\\..\\x", "%2e%2e/../../../..", "/../../x", prefix + "/../x", "\\x", "http:../../../../../x", "http:http:/x", ".\t./../../../.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		h := http.Header{"Location": {v}}
		Rewrite(h, app)
		got := h.Get("Location")
		// As browsers have it before they do anything else.
		got = strings.ReplaceAll(strings.TrimFunc(got, func(c rune) bool { return c <= ' ' }), "\t", "")
		if scheme, rest, ok := strings.Cut(got, ":"); ok && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")) && len(rest)-len(strings.TrimLeft(rest, slashes)) < 2 {
			t.Fatalf("%q became %q, which has no host", v, got)
		}
		if i := strings.IndexAny(got, ":?#/\\"); i > 0 && got[i] == ':' {
			return
		}
		got = got[:pathEnd(got)]
		got = strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(strings.ReplaceAll(got, "\\", "/")), "%2e", "."), "#", "")
		if strings.HasPrefix(got, "//") {
			return
		}
		if !strings.HasPrefix(got, "/") {
			got = prefix + "/a/b/" + got
		}
		depth := 0
		for i, s := range strings.Split(strings.TrimPrefix(got, "/"), "/") {
			switch s {
			case ".":
			case "..":
				depth--
			default:
				depth++
			}
			if i >= strings.Count(prefix, "/") && depth < strings.Count(prefix, "/") {
				t.Fatalf("%q became %q, which climbs out", v, got)
			}
		}
		if !strings.HasPrefix(got+"/", prefix+"/") {
			t.Fatalf("%q became %q, which is not under the prefix", v, got)
		}
	})
}

func TestConfine(t *testing.T) {
	const known = "/absproxy/" + id + "/3000"
	for _, c := range []struct{ name, sent, want string }{
		{"Location", known + "/x?y", known + "/x?y"},
		{"Location", known, known},
		{"Location", known + "1", known + known + "1"},
		{"Location", "/login", known + "/login"},
		{"Location", "/\\evil.example", known + "/\\evil.example"},
		{"Location", "x/y", "x/y"},
		{"Location", "", ""},
		{"Location", "//example.org/x", "//example.org/x"},
		{"Location", "https://example.org/x", "https://example.org/x"},
		{"Refresh", "0; url=/x", "0; url=" + known + "/x"},
		{"Set-Cookie", "a=b; Path=/; Secure", "a=b; Path=" + known + "/; Secure"},
		{"Set-Cookie", "a=b; Path=" + known + "/", "a=b; Path=" + known + "/"},
		{"Set-Cookie", "a=b", "a=b"},
	} {
		h := http.Header{c.name: {c.sent}}
		Confine(h, known)
		if got := h.Get(c.name); got != c.want {
			t.Errorf("%s: %q is %q, not %q", c.name, c.sent, got, c.want)
		}
	}
}

// Whatever an application says passes the host and the control floor, and must then neither
// lead out of the prefix on this origin nor change when it is confined again.
func FuzzConfine(f *testing.F) {
	const known = "/absproxy/" + id + "/3000"
	for _, s := range []string{"/x", "//x", known + "/x", "/../x", "/\\x", "/./x", "http://localhost:3000/x", "0;url=/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		for _, name := range []string{"Location", "Refresh", "Set-Cookie"} {
			h := http.Header{name: {v}}
			Rewrite(h, app)
			Strip(h, prefix)
			Confine(h, known)
			once := h.Get(name)
			if name == "Location" && strings.HasPrefix(once, "/") && !strings.HasPrefix(once, "//") && !strings.HasPrefix(once, known) {
				t.Fatalf("%q is %q, out of the prefix", v, once)
			}
			Confine(h, known)
			if twice := h.Get(name); twice != once {
				t.Fatalf("%s %q is %q, and %q when it is done again", name, v, once, twice)
			}
		}
	})
}

func FuzzIsControl(f *testing.F) {
	f.Add("/%69nit")
	f.Add("/a/../init")
	f.Fuzz(func(t *testing.T, p string) {
		u, err := url.ParseRequestURI(p)
		if err != nil || IsControl(p) {
			return
		}
		// What the guest daemon's router makes of a path: it decodes it once.
		switch strings.Trim(u.Path, "/") {
		case "init", "freeze", "unfreeze", "snapshot/prepare":
			t.Fatalf("%q is let through", p)
		}
	})
}
