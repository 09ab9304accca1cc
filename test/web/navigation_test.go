package web_test

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/wrenn-sandbox/wrenn/api"
)

// A file server's listings are walked by clicks: with and without trailing slashes, and
// through names that a proxy may not put into another form.
func TestDirectoryListing(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		p, base := w.browser.newTab(t), address(filesPort)
		if status := p.open(base); status != http.StatusOK || !strings.Contains(p.text(), "Directory listing for /") {
			t.Fatalf("%d: %s", status, p.text())
		}
		p.picture()
		p.click(`//a[text()="sub/"]`, base+"sub/")
		p.click(`//a[text()="deeper/"]`, base+"sub/deeper/")
		p.click(`//a[text()="page.html"]`, base+"sub/deeper/page.html")
		p.run("go back", chromedp.Evaluate[chromedp.Void]("history.back()")) // a page from the cache is not loaded again
		p.at(base + "sub/deeper/")

		// Without its trailing slash a directory is a redirect, and links there are relative.
		p.open(base + "sub")
		p.at(base + "sub/")
		odd := eval[string](p, `[...document.links].find(a => a.textContent.startsWith("a name")).href`)
		p.click(`//a[starts-with(text(), "a name")]`, odd)
		if got := strings.TrimSpace(p.text()); got != "odd" {
			t.Errorf("the file with an odd name is %q", got)
		}
		if status := p.open(base + "missing"); status != http.StatusNotFound {
			t.Errorf("a missing file: %d", status)
		}
	})
}

// seen is what testdata/app.py says has arrived.
type seen struct {
	Method   string
	Path     string
	Headers  map[string][]string
	Received int
}

// landed is what arrived at the page that a redirect led to.
func landed(p *tab) seen {
	p.t.Helper()
	return eval[seen](p, `JSON.parse(document.getElementById("seen").textContent)`)
}

func TestRedirects(t *testing.T) {
	kinds := []string{"relative", "dots", "root", "absolute", "network", "loopback", "localhost", "guest"}
	codes := []int{http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect}
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		p, base := w.browser.newTab(t), address(appPort)
		for i, kind := range kinds {
			from := "redirect?to=" + kind + "&code=" + strconv.Itoa(codes[i%len(codes)])
			want := base + "landed?from=" + kind
			if kind == "dots" {
				from = "a/b/" + from
			}
			p.open(base + from)
			p.at(want)
			if got := landed(p); got.Path != "/landed?from="+kind {
				t.Errorf("%s: the application saw %s", kind, got.Path)
			}
		}
		p.open(base + "redirect?to=encoded&code=302&at=" + url.QueryEscape("/landed%2Fin//a/../%C3%BC?x=/%2F+%20#part"))
		p.at(base + "landed%2Fin//%C3%BC?x=/%2F+%20#part") // the browser itself takes out the dots
		if got := landed(p).Path; got != "/landed%2Fin//%C3%BC?x=/%2F+%20" {
			t.Errorf("the application saw %s", got)
		}
		p.open(base + "refresh")
		p.at(base + "landed?from=refresh")
		p.picture()

		// A form, and a method that a redirect keeps, with its body.
		p.open(base)
		p.click("#send", base+"landed?from=root")
		if got := landed(p).Method; got != http.MethodGet {
			t.Errorf("after a form the application saw a %s", got)
		}
		for _, code := range []int{http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
			at := eval[string](p, `fetch("redirect?to=root&at=/echo&code=`+strconv.Itoa(code)+`", {method: "POST", body: "x".repeat(100000)})
				.then(async r => r.url + " " + JSON.stringify(await r.json()))`)
			if !strings.HasPrefix(at, base+"echo ") || !strings.Contains(at, `"method":"POST"`) || !strings.Contains(at, `"received":100000`) {
				t.Errorf("%d: a POST came as %s", code, at)
			}
		}
	})
}

// A redirect out of the sandbox leads where it says, and another port is another place.
func TestRedirectElsewhere(t *testing.T) {
	w := theWorld(t)
	p := w.browser.newTab(t)
	elsewhere := w.byName(w.sandbox, filesPort) + "notes.txt"
	for name, way := range ways {
		p.open(way(w, w.sandbox, appPort) + "redirect?to=root&code=302&at=" + url.QueryEscape(elsewhere))
		p.at(elsewhere)
		if got := strings.TrimSpace(p.text()); got != "a plain file" {
			t.Errorf("%s: there is %q", name, got)
		}
	}
}

func TestCookies(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		p, base := w.browser.newTab(t), address(appPort)
		cookies := func(path string) []string {
			t.Helper()
			got := eval[seen](p, `fetch("`+base+path+`").then(r => r.json())`).Headers["cookie"]
			if len(got) != 1 {
				t.Fatalf("%s: %q", path, got)
			}
			all := strings.Split(got[0], "; ")
			slices.Sort(all)
			return all
		}
		p.open(base + "cookies/set")
		p.at(base + "cookies/seen")
		if got, want := cookies("cookies/seen"), []string{"bare=3", "here=2", "root=1", "strict=5"}; !slices.Equal(got, want) {
			t.Errorf("under the path of the cookies came %q, want %q", got, want)
		}
		if got, want := cookies("seen"), []string{"root=1", "strict=5"}; !slices.Equal(got, want) {
			t.Errorf("elsewhere came %q, want %q", got, want)
		}
		// Another port is another application.
		p.open(address(filesPort))
		if got := eval[string](p, "document.cookie"); got != "" {
			t.Errorf("another port has the cookies %q", got)
		}
	})
}

// An application learns who asks for it, whatever stands between.
func TestHostAndOrigin(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, address func(int) string) {
		p, base := w.browser.newTab(t), address(appPort)
		p.open(base)
		at, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		// What a page says of who is before it counts for nothing.
		got := eval[seen](p, `fetch("echo", {method: "POST", headers: {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "bad", "X-Forwarded-Proto": "gopher"}}).then(r => r.json())`)
		want := map[string]string{
			"host": at.Host, "origin": "http://" + at.Host, "referer": base,
			"x-forwarded-host": at.Host, "x-forwarded-proto": "http", "x-forwarded-for": "127.0.0.1",
		}
		if prefix := strings.TrimSuffix(at.Path, "/"); prefix != "" {
			want["x-forwarded-prefix"] = prefix
		} else if got.Headers["x-forwarded-prefix"] != nil {
			t.Errorf("there is no prefix, but one came: %q", got.Headers["x-forwarded-prefix"])
		}
		for name, value := range want {
			if !slices.Equal(got.Headers[name], []string{value}) {
				t.Errorf("%s: %q, want %q", name, got.Headers[name], value)
			}
		}
	})
}

// A server that only takes its own name gets it, and the origin that goes with it.
func TestMaskedHost(t *testing.T) {
	w := theWorld(t)
	id := w.create(t, api.CreateSandboxRequest{MaskRequestHost: "localhost:${PORT}"})
	const masked = "localhost:8000"
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			p, base := w.browser.newTab(t), way(w, id, appPort)
			p.open(base)
			at, err := url.Parse(base)
			if err != nil {
				t.Fatal(err)
			}
			got := eval[seen](p, `fetch("echo", {method: "POST"}).then(r => r.json())`).Headers
			for name, want := range map[string]string{"host": masked, "origin": "http://" + masked, "x-forwarded-host": at.Host} {
				if !slices.Equal(got[name], []string{want}) {
					t.Errorf("%s: %q, want %q", name, got[name], want)
				}
			}
			echoes(t, p)
			p.open(base + "redirect?to=absolute&code=302")
			p.at(base + "landed?from=absolute")
		})
	}
}
