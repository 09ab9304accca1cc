package rpc

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func zip(t *testing.T, content string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unzip(t *testing.T, body string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestNegotiate(t *testing.T) {
	const refused = accepted(99)
	for header, want := range map[string]accepted{
		"":                              plain,
		"gzip":                          zipped,
		"GZip":                          zipped,
		"x-gzip":                        zipped,
		"gzip, deflate":                 zipped, // what Node's fetch sends
		"gzip, deflate, br, zstd":       zipped,
		"deflate, br":                   plain,
		"identity":                      plain,
		"identity, gzip":                plain,
		"gzip, identity":                zipped,
		"gzip;q=0.5, identity":          plain,
		"gzip;q=0.5, identity;q=0.4":    zipped,
		"gzip;q=0":                      plain,
		"gzip ; q=0 , *":                plain,
		"*":                             plain,
		"*;q=0.5, gzip;q=1":             zipped,
		"gzip;q=0.5, *;q=1":             plain,
		"identity;q=0, gzip":            zipOnly,
		"identity;q=0, *":               zipOnly,
		"*;q=0, gzip;q=0.1":             zipOnly,
		"identity;q=0":                  refused,
		"*;q=0":                         refused,
		"br, identity;q=0":              refused,
		"identity;q=0, gzip;q=0, *":     refused,
		"gzip;q=2":                      plain, // no weight: passed over
		"gzip;q=NaN, identity;q=-1, ;,": plain,
		"gzip;level=9":                  plain,
		"gzip;q=0, gzip;q=1":            plain,
	} {
		got, err := negotiate(http.Header{"Accept-Encoding": {header}})
		if err != nil {
			got = refused
		}
		if got != want {
			t.Errorf("Accept-Encoding: %s gives %d, %v; want %d", header, got, err, want)
		}
	}
	several := http.Header{"Accept-Encoding": {"br", "identity;q=0", "gzip;q=0.1"}}
	if got, err := negotiate(several); got != zipOnly || err != nil {
		t.Errorf("several headers give %d, %v", got, err)
	}
}

func TestZippedDownload(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	content := strings.Repeat("so much of the same. ", 10_000)
	if err := os.WriteFile(dir+"/f.txt", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	resp, body := g.do(t, "GET", at(dir+"/f.txt"), nil, "Accept-Encoding", "gzip, deflate")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Encoding") != "gzip" || resp.Header.Get("Vary") != "Accept-Encoding" ||
		resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || len(body) > len(content)/10 || unzip(t, body) != content {
		t.Errorf("%d, %d bytes, %v", resp.StatusCode, len(body), resp.Header)
	}
	// Parts and conditions are about the file as it is.
	resp, body = g.do(t, "GET", at(dir+"/f.txt"), nil, "Accept-Encoding", "gzip", "Range", "bytes=3-6")
	if resp.StatusCode != http.StatusPartialContent || resp.Header.Get("Content-Encoding") != "" || body != "much" {
		t.Errorf("a range: %d %q %v", resp.StatusCode, body, resp.Header)
	}
	resp, body = g.do(t, "GET", at(dir+"/f.txt"), nil, "Accept-Encoding", "gzip", "If-Modified-Since", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	g.want(t, resp, body, 304, "")
	resp, body = g.do(t, "GET", at(dir+"/f.txt"), nil, "Accept-Encoding", "identity;q=0")
	g.want(t, resp, body, 406, `{"code":406,"message":"`)
	// What is empty is said to be so, what is compressed stays as it is.
	if err := os.WriteFile(dir+"/empty", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	resp, body = g.do(t, "GET", at(dir+"/empty"), nil, "Accept-Encoding", "gzip")
	if resp.Header.Get("Content-Length") != "0" || resp.Header.Get("Content-Encoding") != "" || body != "" {
		t.Errorf("an empty file: %q %v", body, resp.Header)
	}
	packed := string(zip(t, content))
	if err := os.WriteFile(dir+"/packed", []byte(packed), 0o644); err != nil {
		t.Fatal(err)
	}
	resp, body = g.do(t, "GET", at(dir+"/packed"), nil, "Accept-Encoding", "gzip")
	if resp.Header.Get("Content-Encoding") != "" || body != packed {
		t.Errorf("a compressed file: %v", resp.Header)
	}
	resp, body = g.do(t, "GET", at(dir+"/packed"), nil, "Accept-Encoding", "gzip, identity;q=0")
	if resp.Header.Get("Content-Encoding") != "gzip" || unzip(t, body) != packed {
		t.Errorf("a compressed file for a client that wants gzip: %v", resp.Header)
	}
	resp, body = g.do(t, "GET", at("/proc/self/status"), nil, "Accept-Encoding", "gzip")
	if resp.Header.Get("Content-Encoding") != "gzip" || !strings.HasPrefix(unzip(t, body), "Name:") {
		t.Errorf("a file without a size: %v", resp.Header)
	}
}

func TestZippedUpload(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	content := strings.Repeat("content ", 100_000)
	resp, body := g.do(t, "POST", at(dir+"/f"), bytes.NewReader(zip(t, content)), "Content-Type", octets, "Content-Encoding", "GZIP")
	g.want(t, resp, body, 200, `"name":"f"`)
	if got, err := os.ReadFile(dir + "/f"); err != nil || string(got) != content {
		t.Errorf("%d bytes arrived, %v", len(got), err)
	}
	kind, multi := parts(t, "file", dir+"/a", "1", dir+"/b", content)
	plain, err := io.ReadAll(multi)
	if err != nil {
		t.Fatal(err)
	}
	resp, body = g.do(t, "POST", "/files", bytes.NewReader(zip(t, string(plain))), "Content-Type", kind, "Content-Encoding", "gzip")
	g.want(t, resp, body, 200, dir+"/a")
	if got, err := os.ReadFile(dir + "/b"); err != nil || string(got) != content {
		t.Errorf("multipart: %d bytes arrived, %v", len(got), err)
	}
	broken := zip(t, content)
	broken[len(broken)-5]++ // in the checksum
	changed := zip(t, content)
	for i := 20; i < 40; i++ { // gzip wants more than there is after this
		changed[i] = 0xff
	}
	for what, c := range map[string]struct {
		body []byte
		says string
	}{
		"nothing":      {nil, "not what gzip makes"},
		"not gzip":     {[]byte("content, content"), "not what gzip makes"},
		"half":         {zip(t, content)[:200], "it is corrupt, or its end is missing"},
		"bad checksum": {broken, "not what gzip makes"},
		"half a head":  {zip(t, content)[:5], "it is corrupt, or its end is missing"},
		"bad content":  {changed, "not what gzip makes"},
		"more":         {append(zip(t, content), "and more"...), "not what gzip makes"},
	} {
		resp, body := g.do(t, "POST", at(dir+"/f"), bytes.NewReader(c.body), "Content-Type", octets, "Content-Encoding", "gzip")
		g.want(t, resp, body, 400, c.says)
		if got, _ := os.ReadFile(dir + "/f"); string(got) != content {
			t.Errorf("%s changed the file", what)
		}
	}
	resp, body = g.do(t, "POST", at(dir+"/f"), strings.NewReader("x"), "Content-Type", octets, "Content-Encoding", "gzip, gzip")
	g.want(t, resp, body, 400, "unsupported content encoding 'gzip, gzip'")
	onlyEntries(t, dir, "a", "b", "f")
}

func FuzzAcceptEncoding(f *testing.F) {
	for _, seed := range []string{"", "gzip", "gzip, deflate, br", "gzip;q=0, *;q=0.5", "*;q=0", "identity;q=0", ";q=1", "gzip;q=1e400", "gzip;q=NaN", ",,,;=", "\x00;q=\xff"} {
		f.Add(seed, "")
		f.Add(seed, "bytes=0-")
	}
	f.Fuzz(func(t *testing.T, header, part string) {
		got, err := negotiate(http.Header{"Accept-Encoding": {header}, "Range": {part}})
		mentions := strings.ToLower(header)
		switch {
		case err != nil && (got != plain || !strings.Contains(mentions, "0")):
			t.Fatalf("%q refuses everything: %v", header, err)
		case got != plain && !strings.Contains(mentions, "gzip") && !strings.Contains(mentions, "*"):
			t.Fatalf("%q gives gzip", header)
		case got == zipped && part != "":
			t.Fatalf("%q gives a range with gzip", header)
		}
	})
}

func FuzzRange(f *testing.F) {
	content := strings.Repeat("0123456789", 100)
	path := f.TempDir() + "/f"
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"bytes=0-", "bytes=-1", "bytes=0-0,5-9", "bytes=9999-", "bytes=5-2", "lines=1", "bytes=", "bytes=0-,0-,0-,0-,0-,0-", "bytes=99999999999999999999-", "bytes=--1", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, asked string) {
		handler := newHandler(t)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, at(path), nil)
		req.Header.Set("Range", asked)
		req.Header.Set("Accept-Encoding", "gzip")
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, req)
		switch rec.Code {
		case http.StatusOK:
			if got := rec.Body.String(); rec.Header().Get("Content-Encoding") == "" && got != content {
				t.Fatalf("%q: %d bytes of the whole", asked, len(got))
			}
		case http.StatusPartialContent:
			if rec.Header().Get("Content-Encoding") != "" || rec.Header().Get("Content-Range") != "" && !strings.Contains(content, rec.Body.String()) {
				t.Fatalf("%q: %q %v", asked, rec.Body, rec.Header())
			}
		case http.StatusRequestedRangeNotSatisfiable:
		default:
			t.Fatalf("%q: %d %s", asked, rec.Code, rec.Body)
		}
	})
}
