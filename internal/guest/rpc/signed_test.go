package rpc

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
)

// newHandler is a daemon without a listener, for targets that ask it often.
func newHandler(t *testing.T) http.Handler {
	t.Helper()
	server, handler := New(Config{
		Logger: slog.New(slog.DiscardHandler),
		Users:  identity.NewUsers("/etc/passwd", "/etc/group"),
	})
	t.Cleanup(server.Close)
	return handler
}

// signature is what an SDK makes, written down here once more on purpose.
func signature(fields ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(fields, ":")))
	return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
}

func TestSignedLinks(t *testing.T) {
	const token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
	g := newGuest(t)
	path := t.TempDir() + "/hello.txt"
	// Before there is a token nothing is asked for, not even a good signature.
	resp, body := g.do(t, "POST", at(path, "signature", "nonsense"), strings.NewReader("hello"), "Content-Type", octets)
	g.want(t, resp, body, 200, "")
	resp, body = g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"`+token+`","defaultUser":"root"}`))
	g.want(t, resp, body, 204, "")

	later, past := fmt.Sprint(time.Now().Add(time.Hour).Unix()), fmt.Sprint(time.Now().Add(-time.Minute).Unix())
	for _, c := range []struct {
		method string
		query  []string
		status int
		says   string
	}{
		{"GET", nil, 401, `{"code":401,"message":"missing signature query parameter"}`},
		{"GET", []string{"signature", signature(path, "read", "", token)}, 200, "hello"},
		{"GET", []string{"signature", signature(path, "read", "nobody", token), "username", "nobody"}, 200, "hello"},
		{"GET", []string{"signature", signature(path, "read", "", token, later), "signature_expiration", later}, 200, "hello"},
		{"POST", []string{"signature", signature(path, "write", "", token)}, 200, "hello.txt"},
		{"POST", []string{"signature", signature(path, "write", "", token, later), "signature_expiration", later}, 200, "hello.txt"},
		{"GET", []string{"signature", signature(path, "write", "", token)}, 401, `{"code":401,"message":"invalid signature"}`},
		{"POST", []string{"signature", signature(path, "read", "", token)}, 401, "invalid signature"},
		{"GET", []string{"signature", signature(path, "read", "", token), "username", "nobody"}, 401, "invalid signature"},
		{"GET", []string{"signature", signature(path, "read", "", token), "signature_expiration", later}, 401, "invalid signature"},
		{"GET", []string{"signature", signature(path, "read", "", token, later)}, 401, "invalid signature"},
		{"GET", []string{"signature", signature(path, "read", "", "other")}, 401, "invalid signature"},
		{"GET", []string{"signature", signature(path, "read", "", token, past), "signature_expiration", past}, 401, `{"code":401,"message":"signature is already expired"}`},
		{"GET", []string{"signature", signature(path, "read", "", token, "0"), "signature_expiration", "0"}, 401, "signature is already expired"},
		{"GET", []string{"signature", signature(path, "read", "", token, "-5"), "signature_expiration", "-5"}, 401, "signature is already expired"},
		{"GET", []string{"signature", "v1_x", "signature_expiration", "soon"}, 400, "not a number of seconds"},
		// An expired link that was tampered with does not say that it has expired.
		{"GET", []string{"signature", "v1_x", "signature_expiration", past}, 401, "invalid signature"},
	} {
		var headers []string
		if c.method == http.MethodPost {
			headers = []string{"Content-Type", octets}
		}
		resp, body := g.do(t, c.method, at(path, c.query...), strings.NewReader("hello"), headers...)
		g.want(t, resp, body, c.status, c.says)
	}
	// A token that is shown must be right, whatever is signed.
	resp, body = g.do(t, "GET", at(path, "signature", signature(path, "read", "", token)), nil, "X-Access-Token", "guess")
	g.want(t, resp, body, 401, "access token present in header but does not match")

	// Paths are signed as they are given: the vector of the SDKs, in its user's home.
	const vector = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
	resp, body = g.do(t, "GET", at("hello.txt", "username", "user", "signature", vector), nil)
	if resp.StatusCode == http.StatusUnauthorized && !strings.Contains(body, "looking up user") {
		t.Errorf("the vector of the SDKs is refused: %s", body)
	}
	// Nobody else's home can be reached with a signature for one's own.
	resp, body = g.do(t, "GET", at("hello.txt", "signature", signature("hello.txt", "read", "", token)), nil, "Authorization", "Basic bm9ib2R5Og==")
	g.want(t, resp, body, 404, "/root/hello.txt")
}

func TestMetadata(t *testing.T) {
	g := newGuest(t)
	path := t.TempDir() + "/f"
	resp, body := g.do(t, "POST", at(path), strings.NewReader("1"), "Content-Type", octets, "X-Metadata-Author", "me & you", "x-metadata-BUILD-Id", "")
	g.want(t, resp, body, 200, `[{"path":"`+path+`","name":"f","type":"file","metadata":{"author":"me \u0026 you","build-id":""}}]`)
	wantMetadata(t, g, path, map[string]string{"author": "me & you", "build-id": ""})
	resp, body = g.do(t, "POST", at(path), strings.NewReader("2"), "Content-Type", octets, "X-Metadata-Other", "x")
	g.want(t, resp, body, 200, `"metadata":{"other":"x"}`)
	wantMetadata(t, g, path, map[string]string{"other": "x"})
	for _, headers := range [][]string{
		{"X-Metadata-" + strings.Repeat("k", 247), "v"},
		{"X-Metadata-K", strings.Repeat("v", 4096)},
		{"X-Metadata-K", "caf\u00e9"},
		{"X-Metadata-", "v"},
	} {
		resp, body = g.do(t, "POST", at(path), strings.NewReader("3"), append(headers, "Content-Type", octets)...)
		g.want(t, resp, body, 400, "metadata")
	}
	if got, _ := os.ReadFile(path); string(got) != "2" {
		t.Errorf("a refused upload made the content %q", got)
	}
	resp, body = g.do(t, "POST", at(path), strings.NewReader("4"), "Content-Type", octets)
	g.want(t, resp, body, 200, `[{"path":"`+path+`","name":"f","type":"file"}]`)
	wantMetadata(t, g, path, nil)
}

func TestCompose(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	for i, content := range []string{"one ", "two ", "three"} {
		if err := os.WriteFile(fmt.Sprint(dir, "/", i), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(body string) (*http.Response, string) {
		return g.do(t, "POST", "/files/compose", strings.NewReader(body), "Content-Type", "application/json")
	}
	for body, c := range map[string]struct {
		status int
		says   string
	}{
		`{`: {400, "not valid JSON"}, `{}`: {400, "source_paths"}, `{"source_paths":["x"]}`: {400, "destination"},
		`{"source_paths":["` + dir + `/none"],"destination":"` + dir + `/to"}`:                                           {404, dir + "/none' does not exist"},
		`{"source_paths":["` + dir + `/0","` + dir + `"],"destination":"` + dir + `/to"}`:                                {400, "is a directory"},
		`{"source_paths":["` + dir + `/0","/dev/zero"],"destination":"` + dir + `/to"}`:                                  {400, "not a regular file"},
		`{"source_paths":["~x"],"destination":"` + dir + `/to"}`:                                                         {400, "home"},
		`{"source_paths":["` + dir + `/0"],"destination":"` + dir + `/to","username":"ghost"}`:                           {401, "error looking up user 'ghost'"},
		`{"source_paths":["` + strings.Repeat("x", maxCompose) + `"],"destination":"` + dir + `/to","username":"ghost"}`: {413, "larger"},
	} {
		resp, answer := ask(body)
		g.want(t, resp, answer, c.status, c.says)
	}
	onlyEntries(t, dir, "0", "1", "2")
	resp, answer := ask(`{"source_paths":["` + dir + `/0","` + dir + `/1","` + dir + `/2"],"destination":"` + dir + `/new/all","username":"nobody"}`)
	g.want(t, resp, answer, 200, `{"path":"`+dir+`/new/all","name":"all","type":"file"}`)
	if got, err := os.ReadFile(dir + "/new/all"); err != nil || string(got) != "one two three" || uid(t, dir+"/new/all") != 65534 {
		t.Errorf("composed %q, %v", got, err)
	}
	onlyEntries(t, dir, "new")
	// A file may be part of itself.
	resp, answer = ask(`{"source_paths":["` + dir + `/new/all","` + dir + `/new/all"],"destination":"` + dir + `/new/all"}`)
	g.want(t, resp, answer, 200, "")
	if got, _ := os.ReadFile(dir + "/new/all"); string(got) != "one two threeone two three" {
		t.Errorf("composed with itself: %q", got)
	}
	resp, answer = g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"secret"}`))
	g.want(t, resp, answer, 204, "")
	resp, answer = ask(`{"source_paths":["x"],"destination":"y"}`)
	g.want(t, resp, answer, 401, "unauthorized access")
}

// FuzzSignedLink wants no link to open a file that was not signed for it.
func FuzzSignedLink(f *testing.F) {
	for _, seed := range []string{"", "v1_", "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E", "\x00", "=", "v1_\xff"} {
		f.Add("hello.txt", seed, "user", "")
		f.Add("/etc/passwd", seed, "", "99999999999")
		f.Add("~", seed, "root", "-1")
	}
	f.Fuzz(func(t *testing.T, path, given, username, expiration string) {
		handler := newHandler(t)
		init := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/init", strings.NewReader(`{"accessToken":"secret of this test"}`))
		handler.ServeHTTP(httptest.NewRecorder(), init)
		query := []string{"signature", given, "username", username}
		if expiration != "" {
			query = append(query, "signature_expiration", expiration)
		}
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, at(path, query...), nil))
		if rec.Code != http.StatusUnauthorized && rec.Code != http.StatusBadRequest {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
	})
}

func wantMetadata(t *testing.T, g *guest, path string, want map[string]string) {
	t.Helper()
	stat, err := g.jsonFiles.Stat(t.Context(), as("", &filesystempb.StatRequest{Path: path}))
	if err != nil {
		t.Fatal(err)
	}
	if got := stat.Msg.GetEntry().GetMetadata(); !maps.Equal(got, want) {
		t.Errorf("metadata %v, want %v", got, want)
	}
}

// FuzzUpload sends names and metadata of any kind and wants an answer, and nothing outside
// the directory that is meant.
func FuzzUpload(f *testing.F) {
	for _, name := range []string{"a", "a/b/c", "../x", "/", "", ".", "~", "~x/y", "a\x00b", "\"; filename=\"b", "a\\b", "fü", "\xff", strings.Repeat("n", 300), "a\r\nX: y"} {
		f.Add(name, "X-Metadata-Key", "value", "file")
		f.Add(name, "x-metadata-", "\x7f", "file")
		f.Add(name, "X-Metadata-"+strings.Repeat("k", 300), "", "other")
	}
	f.Fuzz(func(t *testing.T, name, key, value, field string) {
		home := t.TempDir() + "/home"
		handler := newHandler(t)
		var body bytes.Buffer
		fmt.Fprintf(&body, "--b\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"%s/%s\"\r\n\r\ncontent\r\n--b--\r\n", field, home, name)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/files", &body)
		req.Header.Set("Content-Type", "multipart/form-data; boundary=b")
		req.Header[http.CanonicalHeaderKey(key)] = []string{value}
		if cleaned := filepath.Clean(home + "/" + name); !strings.HasPrefix(cleaned, filepath.Dir(home)+"/") {
			return // it would be written, as asked, where this test must not write
		}
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, req)
		switch rec.Code {
		case http.StatusOK, http.StatusBadRequest:
		default:
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		if !json.Valid(rec.Body.Bytes()) {
			t.Fatalf("the answer is not JSON: %s", rec.Body)
		}
		err := filepath.WalkDir(filepath.Dir(home), func(path string, _ os.DirEntry, err error) error {
			if err == nil && filesystem.IsTemporary(filepath.Base(path)) {
				err = fmt.Errorf("%s was left behind", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
