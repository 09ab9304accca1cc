package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// form writes fields, name and value in turn, as a multipart form.
func form(t testing.TB, fields ...string) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		create := w.CreateFormField
		if fields[i] == "file" {
			create = func(name string) (io.Writer, error) { return w.CreateFormFile(name, "name-that-does-not-matter") }
		}
		part, err := create(fields[i])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(part, fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), w.FormDataContentType()
}

type written struct {
	User, Path, Data string
	Size             int64
}

// keep makes s keep what is written.
func keep(s *server) *written {
	got := &written{}
	s.files.write = func(user, path string, r io.Reader, size int64) error {
		data, err := io.ReadAll(r)
		if err == nil {
			*got = written{user, path, string(data), size}
		}
		return err
	}
	return got
}

func TestWrite(t *testing.T) {
	s := serve(t)
	got := keep(s)
	big := strings.Repeat("0123456789\r\n--", 3*fileBuffer/14)
	for _, route := range []string{"/v1/sandboxes/sb1/files/write", "/v1/capsules/sb1/files/stream/write"} {
		for name, c := range map[string]struct {
			fields []string
			want   written
		}{
			"a form":               {[]string{"path", "/a", "file", big}, written{"", "/a", big, -1}},
			"with a user":          {[]string{"user", "u", "path", "/a", "file", "x"}, written{"u", "/a", "x", -1}},
			"an empty file":        {[]string{"path", "/a", "file", ""}, written{"", "/a", "", -1}},
			"something behind":     {[]string{"path", "/a", "file", "x", "more", "y"}, written{"", "/a", "x", -1}},
			"a file like boundary": {[]string{"path", "/a", "file", "\r\n--x--\r\n"}, written{"", "/a", "\r\n--x--\r\n", -1}},
		} {
			*got = written{}
			body, contentType := form(t, c.fields...)
			a := s.do(t, "POST", route, body, "Content-Type", contentType)
			if a.status != http.StatusNoContent || *got != c.want {
				t.Errorf("%s: %d %.200s, got %s %s %d bytes", name, a.status, a.body, got.User, got.Path, len(got.Data))
			}
		}
		a := s.do(t, "POST", route+"?path=/b%20c&user=u", big, "Content-Type", "application/octet-stream")
		if want := (written{"u", "/b c", big, int64(len(big))}); a.status != http.StatusNoContent || *got != want {
			t.Errorf("plain bytes: %d %s, got %s %s %d", a.status, a.body, got.User, got.Path, got.Size)
		}
	}
}

func TestWriteRefusesBrokenForms(t *testing.T) {
	s := serve(t)
	got := keep(s)
	complete, contentType := form(t, "path", "/a", "file", strings.Repeat("x", 100000))
	noPath, noPathType := form(t, "file", "x")
	noFile, noFileType := form(t, "path", "/a")
	strange, strangeType := form(t, "path", "/a", "mode", "0644", "file", "x")
	long, longType := form(t, "path", strings.Repeat("x", maxFormField+1), "file", "x")
	for name, c := range map[string]struct{ body, contentType, message string }{
		"cut off in the file":  {complete[:50000], contentType, "the form cannot be read to its end"},
		"cut off at its end":   {complete[:len(complete)-40], contentType, "the form cannot be read to its end"},
		"no path":              {noPath, noPathType, `field "path" is missing`},
		"no file":              {noFile, noFileType, `the form has no field "file"`},
		"an unknown field":     {strange, strangeType, `there is no field "mode"`},
		"a path too long":      {long, longType, `field "path" is longer`},
		"no form":              {"nonsense", contentType, "the form"},
		"no boundary":          {complete, "multipart/form-data", "the body cannot be understood"},
		"JSON":                 {"{}", "application/json", `must be multipart/form-data or application/octet-stream`},
		"no path in the query": {"x", "application/octet-stream", `parameter "path" is missing`},
	} {
		a := s.do(t, "POST", "/v1/sandboxes/sb1/files/write", c.body, "Content-Type", c.contentType)
		code, message := a.failure(t)
		if code != "invalid_request" || !strings.Contains(message, c.message) {
			t.Errorf("%s: %s %s", name, code, message)
		}
	}
	if *got != (written{}) {
		t.Errorf("something was written: %s", got.Path)
	}
}

// TestWriteThatFailsStillAnswers has a client that reads nothing before it has sent all,
// as most do.
func TestWriteThatFailsStillAnswers(t *testing.T) {
	s := serve(t)
	s.files.write = func(_, _ string, r io.Reader, _ int64) error {
		if _, err := io.CopyN(io.Discard, r, 10); err != nil {
			return err
		}
		return fault.New(fault.NoSpace, "the sandbox's disk is full")
	}
	body, contentType := form(t, "path", "/a", "file", strings.Repeat("x", 32<<20))
	a := s.do(t, "POST", "/v1/sandboxes/sb1/files/write", body, "Content-Type", contentType)
	if code, _ := a.failure(t); code != "insufficient_space" || a.status != http.StatusInsufficientStorage {
		t.Error(a)
	}
}

func TestRead(t *testing.T) {
	s := serve(t)
	for _, content := range []string{"", "hello", strings.Repeat("x", 3*fileBuffer+1)} {
		for _, size := range []int64{-1, int64(len(content))} {
			closed := false
			s.files.read = func(_ context.Context, path string) (sandbox.Contents, error) {
				if path != "/a" {
					t.Errorf("read %q", path)
				}
				return sandbox.Contents{ReadCloser: closeFunc{strings.NewReader(content), func() { closed = true }}, Size: size}, nil
			}
			a := s.do(t, "POST", "/v1/sandboxes/sb1/files/read", `{"path":"/a"}`)
			if a.status != http.StatusOK || a.body != content || a.header.Get("Content-Type") != "application/octet-stream" || !closed {
				t.Errorf("%d bytes of size %d: %d, %d bytes, closed %v", len(content), size, a.status, len(a.body), closed)
			}
		}
	}
}

func TestReadThatBreaksIsNotTakenForTheWhole(t *testing.T) {
	s := serve(t)
	s.files.read = func(context.Context, string) (sandbox.Contents, error) {
		r := io.MultiReader(strings.NewReader(strings.Repeat("x", fileBuffer+1)), iotest.ErrReader(errors.New("the sandbox died")))
		return sandbox.Contents{ReadCloser: io.NopCloser(r), Size: -1}, nil
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/sandboxes/sb1/files/stream/read", strings.NewReader(`{"path":"/a"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", testKey)
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err == nil || bytes.Contains(got, []byte("error")) {
		t.Errorf("%d bytes and no error", len(got))
	}
}

func TestFileCalls(t *testing.T) {
	s := serve(t)
	entry := sandbox.FileEntry{Name: "n", Path: "/n", Type: sandbox.Symlink, Size: 3, Mode: 0o777, Permissions: "lrwxrwxrwx", Owner: "o", Group: "g", ModifiedAt: t0, SymlinkTarget: "/x"}
	const wire = `{"group":"g","mode":511,"modified_at":1777863721,"name":"n","owner":"o","path":"/n","permissions":"lrwxrwxrwx","size":3,"symlink_target":"/x","type":"symlink"}`
	var asked []any
	s.files.stat = func(user, path string) (sandbox.FileEntry, error) { asked = []any{user, path}; return entry, nil }
	s.files.list = func(user, path string, depth int) ([]sandbox.FileEntry, error) {
		asked = []any{user, path, depth}
		return []sandbox.FileEntry{entry}, nil
	}
	s.files.move = func(from, to string) (sandbox.FileEntry, error) { asked = []any{from, to}; return entry, nil }
	for _, c := range []struct {
		route, body string
		asked       []any
		want        string
	}{
		{"stat", `{"path":"/n","user":"u"}`, []any{"u", "/n"}, `{"entry":` + wire + `}`},
		{"list", `{"path":"/n"}`, []any{"", "/n", 1}, `{"entries":[` + wire + `]}`},
		{"list", `{"path":"/n","depth":3}`, []any{"", "/n", 3}, `{"entries":[` + wire + `]}`},
		{"move", `{"from":"/a","to":"/b"}`, []any{"/a", "/b"}, `{"entry":` + wire + `}`},
	} {
		a := s.do(t, "POST", "/v1/sandboxes/sb1/files/"+c.route, c.body)
		if diff := cmp.Diff(c.asked, asked); diff != "" || strings.TrimSpace(a.body) != c.want {
			t.Errorf("%s: %s%+v", c.route, diff, a)
		}
	}
}

type closeFunc struct {
	io.Reader
	close func()
}

func (c closeFunc) Close() error { c.close(); return nil }

func BenchmarkWriteForm(b *testing.B) {
	const size = 256 << 20
	s := serve(b)
	s.files.write = func(_, _ string, r io.Reader, _ int64) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, fileBuffer))
		return err
	}
	head, contentType := form(b, "path", "/a", "file", "")
	head, tail := head[:strings.LastIndex(head, "\r\n--")], head[strings.LastIndex(head, "\r\n--"):]
	b.SetBytes(size)
	for b.Loop() {
		body := io.MultiReader(strings.NewReader(head), io.LimitReader(zeros{}, size), strings.NewReader(tail))
		req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, s.URL+"/v1/sandboxes/sb1/files/write", body)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("X-API-Key", testKey)
		req.Header.Set("Content-Type", contentType)
		resp, err := s.Client().Do(req)
		if err != nil || resp.StatusCode != http.StatusNoContent {
			b.Fatal(resp, err)
		}
		_ = resp.Body.Close()
	}
}

func BenchmarkRead(b *testing.B) {
	const size = 256 << 20
	s := serve(b)
	s.files.read = func(context.Context, string) (sandbox.Contents, error) {
		return sandbox.Contents{ReadCloser: io.NopCloser(io.LimitReader(zeros{}, size)), Size: size}, nil
	}
	b.SetBytes(size)
	buf := make([]byte, fileBuffer)
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, s.URL+"/v1/sandboxes/sb1/files/read", strings.NewReader(`{"path":"/a"}`))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("X-API-Key", testKey)
		resp, err := s.Client().Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf); err != nil || n != size {
			b.Fatal(n, err)
		}
		_ = resp.Body.Close()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
