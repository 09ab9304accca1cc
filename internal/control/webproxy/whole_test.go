package webproxy

import (
	"net/http"
	"strings"
	"testing"
)

// An application that knows the path under which it is shown gets that, and stays there.
func TestPathsThatApplicationsKnow(t *testing.T) {
	prefix := "/absproxy/" + boxID + "/3000"
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		// As the host agent has it: below the path by which it was asked.
		inside := "/proxy/" + boxID + "/3000"
		w.Header()["Location"] = []string{inside + r.URL.Query().Get("to")}
		w.Header().Add("Set-Cookie", "a=b; Path="+inside+prefix+"/")
		w.Header().Add("Set-Cookie", "c=d; Path="+inside+"/")
		echo(w, r)
	}, nil)
	for _, path := range []string{"/", "//x/", "/a%2Fb?c=%2F"} {
		got := decode(t, ask(t, b.paths, http.MethodGet, "127.0.0.1:1", prefix+path))
		if got.URI != "/proxy/"+boxID+"/3000"+prefix+path || got.Header.Get("X-Forwarded-Prefix") != "" {
			t.Errorf("%s arrived as %q under %q", path, got.URI, got.Header["X-Forwarded-Prefix"])
		}
	}
	for to, want := range map[string]string{prefix + "/login": prefix + "/login", "/login": prefix + "/login", prefix: prefix, "//evil/": prefix + "/.//evil/"} {
		resp := ask(t, b.paths, http.MethodGet, "127.0.0.1", prefix+"/?to="+to)
		cookies := strings.Join(resp.Header["Set-Cookie"], "|")
		if l := resp.Header.Get("Location"); l != want || cookies != "a=b; Path="+prefix+"/|c=d; Path="+prefix+"/" {
			t.Errorf("to %s: Location %q, Set-Cookie %q", to, l, cookies)
		}
	}
	// Whether its root ends in a slash is for the application to say: Next.js sends those away
	// who write one.
	if got := decode(t, ask(t, b.paths, http.MethodGet, "127.0.0.1", prefix+"?a=b")); got.URI != "/proxy/"+boxID+"/3000"+prefix+"?a=b" {
		t.Errorf("without the slash it arrived as %q", got.URI)
	}
	resp := ask(t, b.paths, http.MethodGet, "127.0.0.1", "/absproxy/"+boxID+"/49983/../../../init")
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("a control path of the daemon answers %d", resp.StatusCode)
	}
	b = newBench(t, echo, func(c *Config) { c.Domain = "" }, privateBox())
	b.edge.SetAddress("http", "7700", "http://127.0.0.1:7701")
	link, _, err := b.edge.Link(privateBox(), 3000)
	if err != nil {
		t.Fatal(err)
	}
	_, query, _ := strings.Cut(link, "?")
	resp = ask(t, b.paths, http.MethodGet, "127.0.0.1", prefix+"/lab?a=b&"+query)
	if l, c := resp.Header.Get("Location"), resp.Header.Get("Set-Cookie"); l != prefix+"/lab?a=b" || !strings.Contains(c, "Path="+prefix+"/;") {
		t.Errorf("a link leads to %q with the cookie %q", l, c)
	}
	if got := body(t, ask(t, b.front, http.MethodGet, "localhost", prefix+"/")); got != "the API" {
		t.Errorf("on the API's origin it answers %s", got)
	}
}
