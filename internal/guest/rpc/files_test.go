package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
)

const octets = "application/octet-stream"

func at(path string, more ...string) string {
	values := url.Values{"path": {path}}
	for i := 0; i+1 < len(more); i += 2 {
		values.Set(more[i], more[i+1])
	}
	return "/files?" + values.Encode()
}

func uid(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

func onlyEntries(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

func TestUploadAndDownload(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	path := dir + "/sub/dir/fü.txt"
	resp, body := g.do(t, "POST", at(path, "username", "nobody"), strings.NewReader("content"), "Content-Type", octets)
	g.want(t, resp, body, 200, "")
	if want := `[{"path":"` + path + `","name":"fü.txt","type":"file"}]` + "\n"; body != want {
		t.Errorf("answer %s, want %s", body, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 || uid(t, path) != 65534 || uid(t, dir+"/sub") != 65534 {
		t.Errorf("%v, %v", info, err)
	}
	resp, body = g.do(t, "GET", at(path), nil)
	g.want(t, resp, body, 200, "content")
	if resp.ContentLength != 7 || !strings.HasPrefix(resp.Header.Get("Content-Disposition"), "inline; filename") || resp.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("headers %v", resp.Header)
	}
	for ask, want := range map[string]struct {
		status int
		body   string
		header string
	}{
		"bytes=2-4": {206, "nte", "bytes 2-4/7"}, "bytes=-3": {206, "ent", "bytes 4-6/7"}, "bytes=5-": {206, "nt", "bytes 5-6/7"},
		"bytes=9-": {416, "its size is 7", "bytes */7"}, "lines=1": {416, `{"code":416,"message":"`, ""},
		"bytes=-0": {416, "its size is 7", "bytes */7"}, "bytes= - 000 ,8-": {416, "its size is 7", "bytes */7"},
		"bytes=-0,1-2": {206, "on", "bytes 1-2/7"}, "bytes=-100": {206, "content", "bytes 0-6/7"},
	} {
		resp, body := g.do(t, "GET", at(path), nil, "Range", ask)
		if resp.StatusCode != want.status || !strings.Contains(body, want.body) || resp.Header.Get("Content-Range") != want.header {
			t.Errorf("%s: %d %q %v", ask, resp.StatusCode, body, resp.Header)
		}
	}
	resp, body = g.do(t, "GET", at(path), nil, "If-Modified-Since", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	g.want(t, resp, body, 304, "")
	onlyEntries(t, dir+"/sub/dir", "fü.txt")
}

func TestDownloadsWithoutASize(t *testing.T) {
	g := newGuest(t)
	empty := t.TempDir() + "/empty"
	resp, body := g.do(t, "POST", at(empty), nil, "Content-Type", octets)
	g.want(t, resp, body, 200, "empty")
	resp, body = g.do(t, "GET", at(empty), nil)
	if resp.StatusCode != http.StatusOK || resp.ContentLength != 0 || resp.Header.Get("Content-Length") != "0" || body != "" {
		t.Errorf("an empty file: %d, %v", resp.StatusCode, resp.Header)
	}
	resp, body = g.do(t, "GET", at("/proc/self/status"), nil)
	g.want(t, resp, body, 200, "Name:")
}

// A file whose reads wait, as those of the kernel's log do, is let go with its client.
func TestDownloadThatWaitsEndsWithItsClient(t *testing.T) {
	const waits = "/proc/kmsg"
	if _, err := os.Stat(waits); err != nil {
		t.Skipf("this kernel shows no file that waits: %v", err)
	}
	g := newGuest(t)
	open := func() bool {
		links, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(links, func(link string) bool {
			target, err := os.Readlink(link)
			return err == nil && target == waits
		})
	}
	for name, ask := range map[string]func(context.Context) (*http.Request, error){
		"download": func(ctx context.Context) (*http.Request, error) {
			return http.NewRequestWithContext(ctx, http.MethodGet, g.url+at(waits), http.NoBody)
		},
		"compose": func(ctx context.Context) (*http.Request, error) {
			body := strings.NewReader(`{"source_paths":["` + waits + `"],"destination":"` + t.TempDir() + `/f"}`)
			return http.NewRequestWithContext(ctx, http.MethodPost, g.url+"/files/compose", body)
		},
	} {
		ctx, leave := context.WithTimeout(t.Context(), patience)
		req, err := ask(ctx)
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			if resp, err := g.http.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
		eventually(t, name+": the file is open", open)
		leave()
		<-answered
		eventually(t, name+": the file is closed", func() bool { return !open() })
	}
}

func TestFileErrors(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", dir+"/loop"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, user string
		status     int
		says       string
	}{
		{dir, "", 400, "is a directory"},
		{dir + "/fifo", "", 400, "not a regular file"},
		{"/dev/zero", "", 400, "not a regular file"},
		{dir + "/loop", "", 400, "symbolic links"},
		{dir + "/a\x00", "", 400, "NUL"},
		{dir + "/" + strings.Repeat("n", 300), "", 400, "too long"},
		{"~other/x", "", 400, "another user's home"},
		{dir + "/fifo", "ghost", 401, "error looking up user 'ghost': "},
	} {
		more := []string{}
		if c.user != "" {
			more = []string{"username", c.user}
		}
		resp, body := g.do(t, "GET", at(c.path, more...), nil)
		g.want(t, resp, body, c.status, fmt.Sprintf(`{"code":%d,"message":"`, c.status))
		g.want(t, resp, body, c.status, c.says)
		if got := resp.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
			t.Errorf("an error is %s", got)
		}
		resp, body = g.do(t, "POST", at(c.path, more...), strings.NewReader("x"), "Content-Type", octets)
		g.want(t, resp, body, c.status, c.says)
	}
	resp, body := g.do(t, "GET", at("/proc/self/mem"), nil)
	g.want(t, resp, body, 400, "path '/proc/self/mem' cannot be read as a file: ")
	resp, body = g.do(t, "GET", at(dir+"/../"+"none"), nil)
	g.want(t, resp, body, 404, `{"code":404,"message":"path '`+dir[:strings.LastIndex(dir, "/")]+`/none' does not exist"}`)
	resp, body = g.do(t, "POST", "/files", strings.NewReader("x"), "Content-Type", octets)
	g.want(t, resp, body, 400, "'path' is missing")
	resp, body = g.do(t, "POST", at(dir+"/x"), strings.NewReader("x"), "Content-Type", "text/plain")
	g.want(t, resp, body, 400, "unsupported content type 'text/plain'")
	resp, body = g.do(t, "POST", at(dir+"/x"), strings.NewReader("x"), "Content-Type", octets, "Content-Encoding", "br")
	g.want(t, resp, body, 400, "unsupported content encoding 'br'")
	resp, body = g.do(t, "POST", at(dir+"/x"), strings.NewReader("x"), "Content-Type", "multipart/form-data")
	g.want(t, resp, body, 400, "boundary")
	onlyEntries(t, dir, "fifo", "loop")
}

func TestFullDisk(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	resp, body := g.do(t, "POST", at(dir+"/f"), bytes.NewReader(make([]byte, 4<<20)), "Content-Type", octets)
	g.want(t, resp, body, 507, "not enough disk space")
	onlyEntries(t, dir)
}

// parts makes a multipart body of files by name.
func parts(t *testing.T, field string, namesAndContents ...string) (string, io.Reader) {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for i := 0; i+1 < len(namesAndContents); i += 2 {
		header := textproto.MIMEHeader{}
		disposition := `form-data; name="` + field + `"`
		if namesAndContents[i] != "" {
			disposition += `; filename="` + namesAndContents[i] + `"`
		}
		header.Set("Content-Disposition", disposition)
		part, err := w.CreatePart(header)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(part, namesAndContents[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), &body
}

func TestMultipart(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	kind, body := parts(t, "file", dir+"/a/one", "1", dir+"/b/two", "2")
	resp, answer := g.do(t, "POST", "/files", body, "Content-Type", kind)
	g.want(t, resp, answer, 200, `[{"path":"`+dir+`/a/one","name":"one","type":"file"},{"path":"`+dir+`/b/two","name":"two","type":"file"}]`)
	for path, want := range map[string]string{"/a/one": "1", "/b/two": "2"} {
		if got, err := os.ReadFile(dir + path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	kind, body = parts(t, "file", "ignored", "by path")
	resp, answer = g.do(t, "POST", at(dir+"/named"), body, "Content-Type", kind)
	g.want(t, resp, answer, 200, dir+"/named")
	kind, body = parts(t, "other", dir+"/never", "x")
	resp, answer = g.do(t, "POST", "/files", body, "Content-Type", kind)
	g.want(t, resp, answer, 200, "[]")
	kind, body = parts(t, "file", "", "x")
	resp, answer = g.do(t, "POST", "/files", body, "Content-Type", kind)
	g.want(t, resp, answer, 400, "no filename")
	// If one part is wrong nothing changes.
	kind, body = parts(t, "file", dir+"/c", "1", dir+"/named", "2", dir+"/./c", "3")
	resp, answer = g.do(t, "POST", "/files", body, "Content-Type", kind)
	g.want(t, resp, answer, 400, "more than once")
	if got, _ := os.ReadFile(dir + "/named"); string(got) != "by path" {
		t.Errorf("a refused upload changed a file to %q", got)
	}
	if err := os.Symlink(".", dir+"/again"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ one, two, says string }{
		{"/c", "/again/c", "more than once"},
		{"/n/new", "/again/n/new", "more than once"},
		{"/n", "/n/b", "below another file"},
		{"/n", "/again/n/b/c", "below another file"},
		{"/n/b", "/n", "is a directory"},
	} {
		kind, body = parts(t, "file", dir+"/x/y/z", "0", dir+c.one, "1", dir+c.two, "2", dir+"/x/w", "3")
		resp, answer = g.do(t, "POST", "/files", body, "Content-Type", kind)
		g.want(t, resp, answer, 400, c.says)
		onlyEntries(t, dir, "a", "again", "b", "named")
	}
	// A body that is cut off in the middle of a part.
	kind, body = parts(t, "file", dir+"/named", strings.Repeat("y", 5<<20))
	resp, answer = g.do(t, "POST", "/files", io.LimitReader(body, 3<<20), "Content-Type", kind)
	g.want(t, resp, answer, 400, "ended before it was complete")
	if got, _ := os.ReadFile(dir + "/named"); string(got) != "by path" {
		t.Errorf("half an upload changed a file")
	}
	for body, says := range map[string]string{
		"":                          "ended before it was complete",
		"--b\r\n":                   "ended before it was complete",
		"--b\r\nno header\r\n\r\nx": "is not multipart",
		"--b\r\nX: " + strings.Repeat("y", 11<<20) + "\r\n\r\nx\r\n--b--": "headers of a part are too large",
		// One part is whole, and then it is cut off where the next would begin.
		"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"" + dir + "/c\"\r\n\r\nx\r\n--b\r\n": "ended before it was complete",
	} {
		resp, answer = g.do(t, "POST", "/files", strings.NewReader(body), "Content-Type", "multipart/form-data; boundary=b")
		g.want(t, resp, answer, 400, says)
	}
	resp, answer = g.do(t, "POST", "/files", strings.NewReader("--b--"), "Content-Type", "multipart/form-data; boundary=b")
	g.want(t, resp, answer, 200, "[]")
	onlyEntries(t, dir, "a", "again", "b", "named")
}

// halfUpload sends the beginning of an upload on a connection of its own, which it returns.
func halfUpload(t *testing.T, g *guest, path, framing, beginning string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%s\r\n\r\n%s", at(path), octets, framing, beginning)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestADisconnectLeavesTheOldFile(t *testing.T) {
	g := newGuest(t)
	for framing, beginning := range map[string]string{
		"Content-Length: 5000000":    strings.Repeat("n", 2<<20),
		"Transfer-Encoding: chunked": "100000\r\n" + strings.Repeat("n", 1<<20) + "\r\n",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/f", []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		conn := halfUpload(t, g, dir+"/f", framing, beginning)
		eventually(t, "the new content is being written beside the old", func() bool {
			entries, err := os.ReadDir(dir)
			return err == nil && len(entries) == 2
		})
		if got, _ := os.ReadFile(dir + "/f"); string(got) != "old" {
			t.Errorf("%s: a reader sees %d bytes of the new content", framing, len(got))
		}
		_ = conn.Close()
		eventually(t, "nothing but the old file is left", func() bool {
			entries, err := os.ReadDir(dir)
			return err == nil && len(entries) == 1
		})
		if got, _ := os.ReadFile(dir + "/f"); string(got) != "old" {
			t.Errorf("%s: the file changed", framing)
		}
	}
}

// fetch downloads into dst.
func (g *guest) fetch(t *testing.T, path string, dst io.Writer) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(dst, resp.Body)
	if err != nil || resp.ContentLength != n {
		t.Errorf("%d of %d bytes, %v", n, resp.ContentLength, err)
	}
}

func TestLargeFilesBothWays(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 128 MiB")
	}
	g := newGuest(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=200m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	content := make([]byte, 64<<20+5)
	for i := 0; i < len(content); i += 512 {
		copy(content[i:], fmt.Sprint(i))
	}
	want := sha256.Sum256(content)
	began := time.Now()
	resp, body := g.do(t, "POST", at(dir+"/big"), bytes.NewReader(content), "Content-Type", octets)
	g.want(t, resp, body, 200, "big")
	t.Logf("up: %.0f MB/s", float64(len(content))/time.Since(began).Seconds()/1e6)
	began = time.Now()
	got := bytes.NewBuffer(make([]byte, 0, len(content)+bytes.MinRead))
	g.fetch(t, at(dir+"/big"), got)
	t.Logf("down: %.0f MB/s", float64(len(content))/time.Since(began).Seconds()/1e6)
	if sha256.Sum256(got.Bytes()) != want {
		t.Errorf("%d bytes came back, or not the same", got.Len())
	}
	kind, multi := parts(t, "file", dir+"/big2", string(content))
	began = time.Now()
	resp, body = g.do(t, "POST", "/files", multi, "Content-Type", kind)
	g.want(t, resp, body, 200, "big2")
	t.Logf("up, multipart: %.0f MB/s", float64(len(content))/time.Since(began).Seconds()/1e6)
	if got, err := os.ReadFile(dir + "/big2"); err != nil || sha256.Sum256(got) != want {
		t.Errorf("multipart: %d bytes, or not the same, %v", len(got), err)
	}
}

func TestFilesystemService(t *testing.T) {
	g := newGuest(t)
	for name, client := range map[string]filesystemconnect.FilesystemClient{"binary": g.files, "json": g.jsonFiles} {
		dir := t.TempDir()
		made, err := client.MakeDir(t.Context(), as("nobody", &filesystempb.MakeDirRequest{Path: dir + "/d"}))
		if err != nil || made.Msg.GetEntry().GetOwner() != "nobody" || made.Msg.GetEntry().GetGroup() != "nogroup" || made.Msg.GetEntry().GetType() != filesystempb.FileType_FILE_TYPE_DIRECTORY {
			t.Fatalf("%s: made %v, %v", name, made, err)
		}
		_, err = client.MakeDir(t.Context(), as("nobody", &filesystempb.MakeDirRequest{Path: dir + "/d"}))
		wantConnect(t, err, connect.CodeAlreadyExists, "already exists")
		if err := os.WriteFile(dir+"/f", []byte("12345"), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("f", dir+"/l"); err != nil {
			t.Fatal(err)
		}
		list, err := client.ListDir(t.Context(), as("", &filesystempb.ListDirRequest{Path: dir + "/d/.."}))
		if err != nil || len(list.Msg.GetEntries()) != 3 {
			t.Fatalf("%s: list %v, %v", name, list, err)
		}
		link := list.Msg.GetEntries()[2]
		if link.GetName() != "l" || link.GetPath() != dir+"/l" || link.GetSymlinkTarget() != dir+"/f" || link.GetType() != filesystempb.FileType_FILE_TYPE_FILE || link.GetMode() != 0o640 {
			t.Errorf("%s: link %v", name, link)
		}
		moved, err := client.Move(t.Context(), as("nobody", &filesystempb.MoveRequest{Source: dir + "/f", Destination: dir + "/x/y"}))
		if err != nil || moved.Msg.GetEntry().GetPath() != dir+"/x/y" {
			t.Errorf("%s: moved %v, %v", name, moved, err)
		}
		stat, err := client.Stat(t.Context(), as("", &filesystempb.StatRequest{Path: dir + "/x/y"}))
		if err != nil || stat.Msg.GetEntry().GetSize() != 5 || stat.Msg.GetEntry().GetPermissions() != "-rw-r-----" || stat.Msg.GetEntry().GetModifiedTime() == nil {
			t.Errorf("%s: stat %v, %v", name, stat, err)
		}
		for range 2 {
			if _, err := client.Remove(t.Context(), as("", &filesystempb.RemoveRequest{Path: dir + "/x"})); err != nil {
				t.Errorf("%s: remove: %v", name, err)
			}
		}
		_, err = client.Stat(t.Context(), as("", &filesystempb.StatRequest{Path: dir + "/x/y"}))
		wantConnect(t, err, connect.CodeNotFound, "path '"+dir+"/x/y' does not exist")
		_, err = client.Stat(t.Context(), as("ghost", &filesystempb.StatRequest{}))
		wantConnect(t, err, connect.CodeUnauthenticated, "invalid username: 'ghost'")
		_, err = client.ListDir(t.Context(), as("", &filesystempb.ListDirRequest{Path: "~root"}))
		wantConnect(t, err, connect.CodeInvalidArgument, "home")
		home, err := client.Stat(t.Context(), as("", &filesystempb.StatRequest{}))
		if err != nil || home.Msg.GetEntry().GetPath() != "/root" {
			t.Errorf("%s: home %v, %v", name, home, err)
		}
	}
}
