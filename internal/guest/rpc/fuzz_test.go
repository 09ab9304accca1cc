package rpc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// confined is a daemon without a listener, whose only user lives in a directory of the test.
type confined struct {
	http.Handler
	home string
}

func newConfined(t *testing.T) confined {
	t.Helper()
	dir := t.TempDir()
	home, passwd := filepath.Join(dir, "home"), filepath.Join(dir, "passwd")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(passwd, []byte("root:x:0:0::"+home+":/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	server, handler := New(Config{Logger: slog.New(slog.DiscardHandler), Users: identity.NewUsers(passwd, "/etc/group"), Path: "/usr/bin:/bin"})
	t.Cleanup(server.Close)
	return confined{handler, home}
}

// holds says whether what a request names stays below the test's directory. What does not
// would be done, as asked, where this test must not do it.
func (c confined) holds(paths ...string) bool {
	return !slices.ContainsFunc(paths, func(given string) bool {
		path, err := filesystem.Resolve(given, c.home, "")
		return err == nil && !strings.HasPrefix(path, c.home+"/")
	})
}

// post asks once and wants one of the statuses, and an answer in JSON.
func (c confined) post(t *testing.T, path, kind string, body []byte, statuses ...int) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", kind)
	rec := httptest.NewRecorder()
	c.ServeHTTP(rec, req)
	if !slices.Contains(statuses, rec.Code) || !strings.HasPrefix(kind, "application/connect") && !json.Valid(rec.Body.Bytes()) {
		t.Fatalf("%s answers %d %s to %q", path, rec.Code, rec.Body, body)
	}
	return rec
}

// nothingTemporary wants no file of an unfinished write to be left.
func (c confined) nothingTemporary(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(c.home, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filesystem.IsTemporary(filepath.Base(path)) {
			err = fmt.Errorf("%s was left behind", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzFilesystem sends anything to the calls that are about paths.
func FuzzFilesystem(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"path":"a"}`, `{"path":"a/b/../c","depth":4294967295}`, `{"path":"~/x"}`, `{"path":"~other/x"}`, `{"path":"a\u0000b"}`,
		`{"source":"f","destination":"d/e"}`, `{"source":"d","destination":"d/e"}`, `{"source":"f","destination":"f"}`, `{"source":"l","destination":"f"}`,
		`{"path":"l"}`, `{"path":"l/x"}`, `{"path":"p"}`, `{"path":"f/x"}`, `{"path":"d","newer":[1]}`, `{"path":7}`, `[`, "\xff",
		`{"path":"` + strings.Repeat("n", 300) + `"}`, `{"path":"` + strings.Repeat("d/", 3000) + `"}`, `{"path":"\ud800"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := newConfined(t)
		if err := os.Mkdir(c.home+"/d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.home+"/f", []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("l", c.home+"/l"); err != nil {
			t.Fatal(err)
		}
		var stat filesystempb.StatRequest // the others name their path alike
		var move filesystempb.MoveRequest
		_, _ = jsonCodec{}.Unmarshal(body, &stat), jsonCodec{}.Unmarshal(body, &move) // then they are refused
		if !c.holds(stat.GetPath(), move.GetSource(), move.GetDestination()) {
			return
		}
		for _, method := range []string{"Stat", "ListDir", "MakeDir", "Move", "Remove"} {
			c.post(t, "/filesystem.Filesystem/"+method, "application/json", body, 200, 400, 403, 404, 409, 429)
		}
	})
}

// FuzzCompose sends anything as the body of POST /files/compose.
func FuzzCompose(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `{"source_paths":["a","b"],"destination":"c"}`, `{"source_paths":["a","a"],"destination":"a"}`, `{"source_paths":["a"],"destination":"d"}`,
		`{"source_paths":["d"],"destination":"x/y"}`, `{"source_paths":["~x"],"destination":"a"}`, `{"source_paths":[""],"destination":"a"}`,
		`{"source_paths":["a\u0000"],"destination":"b"}`, `{"source_paths":null,"destination":"b","username":"root"}`, `{"source_paths":["a"],"destination":"b","username":"ghost"}`,
		`{"source_paths":["a"],"destination":"a/b"}`, `{"source_paths":{}}`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := newConfined(t)
		for _, name := range []string{"a", "b"} {
			if err := os.WriteFile(c.home+"/"+name, []byte(name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(c.home+"/d", 0o755); err != nil {
			t.Fatal(err)
		}
		var req composeRequest
		_ = json.NewDecoder(bytes.NewReader(body)).Decode(&req) // then it is refused
		if !c.holds(append(req.SourcePaths, req.Destination)...) {
			return
		}
		c.post(t, "/files/compose", "application/json", body, 200, 400, 401, 404)
		c.nothingTemporary(t)
	})
}

// FuzzContent sends anything as the content of an upload, in every form that one can have.
func FuzzContent(f *testing.F) {
	forms := []string{"application/octet-stream", "multipart/form-data; boundary=b", "multipart/form-data", "multipart/form-data; boundary=\"\"", "text/plain", ""}
	for form := range forms {
		for _, seed := range []string{
			"", "content", "--b--", "--b\r\n\r\n\r\n--b--\r\n", "--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--b--",
			"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\nContent-Type: a/b\r\n\r\ncontent\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename*=UTF-8''%ff\r\n\r\n\r\n--b--",
			"--b\r\nContent-Disposition: form-data; name=file\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=\r\n--b", "--b\r\n" + strings.Repeat("A: b\r\n", 500), "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff",
		} {
			f.Add(uint8(form), false, []byte(seed))
			f.Add(uint8(form), true, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, form uint8, zipped bool, body []byte) {
		c := newConfined(t)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, at(c.home+"/f"), bytes.NewReader(body))
		req.Header.Set("Content-Type", forms[int(form)%len(forms)])
		if zipped {
			req.Header.Set("Content-Encoding", "gzip")
		}
		rec := httptest.NewRecorder()
		c.ServeHTTP(rec, req)
		if rec.Code != http.StatusOK && rec.Code != http.StatusBadRequest || !json.Valid(rec.Body.Bytes()) {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		_, err := os.Stat(c.home + "/f")
		if wrote := strings.Contains(rec.Body.String(), `"type":"file"`); wrote != (err == nil) {
			t.Fatalf("answered %s, and the file: %v", rec.Body, err)
		}
		c.nothingTemporary(t)
	})
}

// FuzzStart sends anything as a request to start a process, which is always a harmless one.
func FuzzStart(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"process":{"cmd":"x"}}`, `{"process":{"cmd":"x","args":["\u0000"]}}`, `{"process":{"cmd":"x","envs":{"A=":"b"}}}`, `{"process":{"cmd":"x","envs":{"":""}}}`,
		`{"process":{"cmd":"x","cwd":"~other"}}`, `{"process":{"cmd":"x","cwd":"/none"}}`, `{"process":{"cmd":"x","cwd":"\u0000"}}`, `{"process":{"cmd":"x","cwd":"/dev/null"}}`,
		`{"process":{"cmd":"x"},"pty":{"size":{"cols":1,"rows":4294967295}}}`, `{"process":{"cmd":"x"},"pty":{}}`, `{"process":{"cmd":"x"},"pty":{"size":{"cols":80}}}`,
		`{"process":{"cmd":"x"},"tag":"","stdin":false}`, `{"process":{"cmd":"x"},"tag":"\u0000\ud83d\ude00"}`, `{"process":7}`, `[`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := newConfined(t)
		var req processpb.StartRequest
		if (jsonCodec{}).Unmarshal(body, &req) == nil {
			if req.GetProcess() == nil {
				req.Process = &processpb.ProcessConfig{}
			}
			req.Process.Cmd = "/bin/true" // a shell in a terminal would wait for its user
			var err error
			if body, err = (jsonCodec{}).Marshal(&req); err != nil {
				return // such as a text that is not UTF-8
			}
		}
		c.wantStream(t, "/process.Process/Start", `"internal"`, envelope(body))
	})
}

// FuzzStream sends anything as the body of a stream: frames, or what looks like them.
func FuzzStream(f *testing.F) {
	for _, seed := range []string{`{}`, `{"process":{"pid":1}}`, `{"start":{"process":{"pid":7}}}`, `{"data":{"input":{"stdin":"eA=="}}}`, `{"keepalive":{}}`, `[`} {
		f.Add(envelope([]byte(seed)))
		f.Add(append(envelope([]byte(seed)), envelope([]byte(`{"data":{"input":{"pty":"!"}}}`))...))
		f.Add(envelope([]byte(seed))[:4])
		f.Add([]byte(seed))
	}
	f.Add([]byte{2, 0, 0, 0, 2, '{', '}'})
	f.Add([]byte{1, 0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0, 255, 255, 255, 255})
	f.Add([]byte("2\x00\x00\x00\x0200"))
	f.Add([]byte("0\x00\x00\x00\x0200000"))
	f.Fuzz(func(t *testing.T, body []byte) {
		c := newConfined(t)
		for _, method := range []string{"Connect", "StreamInput"} {
			// What is no frame Connect itself calls internal, in many words.
			c.wantStream(t, "/process.Process/"+method, "the server's log", body)
		}
	})
}

// FuzzReplayFrom sends anything as the place from which output is to come.
func FuzzReplayFrom(f *testing.F) {
	for _, seed := range []string{"0,0", "4096,0", "007,9223372036854775807", "9223372036854775808,0", "-1,0", "1", ",", "1,2,3", " 1,2", "1e3,0", "\x00,1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at, err := parsePosition(text)
		if err != nil {
			if !fault.Is(err, fault.InvalidRequest) {
				t.Fatal(err)
			}
			return
		}
		if at.Stdout < 0 || at.Stderr < 0 {
			t.Fatalf("%q is %+v", text, at)
		}
		if again, err := parsePosition(formatPosition(at)); err != nil || again != at {
			t.Fatalf("%q is %+v, and then %+v, %v", text, at, again, err)
		}
	})
}

// FuzzAuthorization sends anything as the user of a request.
func FuzzAuthorization(f *testing.F) {
	for _, seed := range []string{"", "Basic", "Basic ", "basic cm9vdDo=", "Basic cm9vdA", "Basic Og==", "Bearer x", "Basic \x00", "BASIC  cm9vdDpy ", "Basic Z2hvc3Q6"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, authorization string) {
		c := newConfined(t)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/process.Process/List", strings.NewReader(`{}`))
		req.Header.Set("Content-Type", "application/json")
		req.Header["Authorization"] = []string{authorization}
		rec := httptest.NewRecorder()
		c.ServeHTTP(rec, req)
		if rec.Code != http.StatusOK && (rec.Code != http.StatusUnauthorized || !strings.Contains(rec.Body.String(), `"unauthenticated"`)) {
			t.Fatalf("%d %s to %q", rec.Code, rec.Body, authorization)
		}
	})
}

func envelope(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// wantStream wants a stream's answer to be frames, of which the last one says how it ended,
// and not that the daemon failed, which would be in that word.
func (c confined) wantStream(t *testing.T, path, failed string, body []byte) {
	t.Helper()
	rest := c.post(t, path, "application/connect+json", body, 200).Body.Bytes()
	const header, endOfStream = 5, 2
	for len(rest) >= header {
		flags, size := rest[0], int(binary.BigEndian.Uint32(rest[1:header]))
		if len(rest) < header+size {
			break
		}
		message := rest[header : header+size]
		if !json.Valid(message) {
			t.Fatalf("%s sends %q after %q", path, message, body)
		}
		if rest = rest[header+size:]; flags == endOfStream {
			if len(rest) > 0 || bytes.Contains(message, []byte(failed)) {
				t.Fatalf("%s ends with %s and %q after %q", path, message, rest, body)
			}
			return
		}
	}
	t.Fatalf("%s breaks off with %q after %q", path, rest, body)
}
