package webproxy

import (
	"net/http"
	"strings"
	"testing"
)

func FuzzOwnCookies(f *testing.F) {
	for _, line := range []string{"a=b", "wrenn_pass=1", "a=b; wrenn_pass=1;c=d", "__Host-wrenn_x=1", "wrenn_", "a=\"wrenn_pass=1; b\"", ";;wrenn_a=1;"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		for _, left := range withoutOwn([]string{line}) {
			for part := range strings.SplitSeq(left, ";") {
				if name, _, _ := strings.Cut(strings.TrimSpace(part), "="); isOwn(name) {
					t.Fatalf("%q leaves %q", line, left)
				}
			}
			// Whatever a parser makes of it, ours are not among it.
			r := &http.Request{Header: http.Header{"Cookie": {left}}}
			for _, c := range r.Cookies() {
				if isOwn(c.Name) {
					t.Fatalf("%q leaves the cookie %q", line, c.Name)
				}
			}
		}
		if !strings.Contains(line, ownPrefix) {
			if kept := withoutOwn([]string{line}); len(kept) != 1 || kept[0] != line {
				t.Fatalf("%q became %q", line, kept)
			}
		}
	})
}

func FuzzCutLink(f *testing.F) {
	for _, rest := range []string{"/", "/?", "/a?wrenn_link=x", "/?a=b&wrenn_link=x&c", "//?wrenn_link=", "/?wrenn_link=a&wrenn_link=b"} {
		f.Add(rest)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		_, without, ok := cutLink(rest)
		if _, _, again := cutLink(without); again {
			t.Fatalf("%q without the link is %q", rest, without)
		}
		path, _, _ := strings.Cut(rest, "?")
		if kept, _, _ := strings.Cut(without, "?"); ok && kept != path {
			t.Fatalf("the path of %q became %q", rest, kept)
		}
	})
}

func FuzzRawTarget(f *testing.F) {
	for _, uri := range []string{"/a", "//a", "http://h/a?b", "http://h?b", "http://h", "*", "a", "http:", "://", ""} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		raw, err := rawTarget(&http.Request{Method: http.MethodGet, RequestURI: uri})
		if err == nil && !strings.HasPrefix(raw, "/") {
			t.Fatalf("%q became %q", uri, raw)
		}
	})
}
