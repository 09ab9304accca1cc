package rpc

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// SDKs choose by this number what they ask for.
func TestVersionOfTheContract(t *testing.T) {
	if Version != "0.6.13" {
		t.Errorf("the version is %s", Version)
	}
	g := newGuest(t)
	for body, status := range map[string]int{`{}`: 204, `{`: 400} {
		resp, answer := g.do(t, "POST", "/init", strings.NewReader(body))
		g.want(t, resp, answer, status, "")
		if got := resp.Header.Get("X-Envd-Version"); got != Version {
			t.Errorf("%s is answered by version %q", body, got)
		}
	}
}

// Once there is a token, all but four paths want it, whole and exact; a browser's question
// whether it may ask at all comes before that.
func TestWhatIsOpenWithoutTheToken(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"secret"}`))
	g.want(t, resp, body, 204, "")
	const refused = `{"code":401,"message":"unauthorized access, please provide a valid access token or method signing if supported"}` + "\n"
	for _, closed := range []string{
		"GET /metrics", "GET /envs", "GET /ports", "POST /snapshot/prepare", "POST /files/compose", "HEAD /files", "PUT /files", "POST /health", "GET /init",
		"POST /process.Process/Start", "POST /process.Process/Connect", "POST /process.Process/StreamInput", "POST /process.Process/List",
		"POST /filesystem.Filesystem/WatchDir", "POST /filesystem.Filesystem/Stat", "GET /", "POST /files/", "GET //files",
	} {
		method, path, _ := strings.Cut(closed, " ")
		for _, token := range []string{"", "secre", "secret2", "SECRET", "Bearer secret"} {
			resp, body := g.do(t, method, path, strings.NewReader("{}"), "X-Access-Token", token, "Origin", "https://x.example")
			if resp.StatusCode != http.StatusUnauthorized || method != http.MethodHead && body != refused || resp.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s with %q: %d %s %v", closed, token, resp.StatusCode, body, resp.Header)
			}
		}
	}
	for open, says := range map[string]string{"GET /health": "", "GET /files": "missing signature", "POST /files": "missing signature", "POST /init": "the access token is not the one"} {
		method, path, _ := strings.Cut(open, " ")
		resp, body := g.do(t, method, path, strings.NewReader("{}"))
		if body == refused || !strings.Contains(body, says) {
			t.Errorf("%s: %d %s", open, resp.StatusCode, body)
		}
	}
	resp, body = g.do(t, "OPTIONS", "/process.Process/Start", nil, "Origin", "https://x.example", "Access-Control-Request-Method", "POST")
	g.want(t, resp, body, 204, "")
}

// frames cuts the body of a Connect stream into its messages; the last one has a flag.
func frames(t *testing.T, body string) (messages []string, end string) {
	t.Helper()
	const head, last = 5, 2
	for len(body) >= head {
		size := int(binary.BigEndian.Uint32([]byte(body[1:head])))
		flag, text := body[0], body[head:head+size]
		body = body[head+size:]
		switch {
		case flag == last && body == "":
			return messages, text
		case flag != 0:
			t.Fatalf("a message has the flag %d, and then come %q", flag, body)
		}
		messages = append(messages, text)
	}
	t.Fatalf("the stream ends without a last message after %q", messages)
	return nil, ""
}

// What an SDK gets on the wire: HTTP/1.1, nothing compressed although it could be, a frame
// for each event, no fields that are zero, and an end that is said.
func TestFramesOnTheWire(t *testing.T) {
	g := newGuest(t)
	post := func(procedure, message string, headers ...string) (*http.Response, string) {
		return g.do(t, "POST", procedure, bytes.NewReader(envelope([]byte(message))), append(headers,
			"Content-Type", "application/connect+json", "Connect-Protocol-Version", "1", "Connect-Accept-Encoding", "gzip", "Accept-Encoding", "gzip")...)
	}
	resp, body := post("/process.Process/Start", `{"process":{"cmd":"/bin/sh","args":["-c","printf 'a\\303'; printf e >&2"],"unknown":{"x":[1]}},"stdin":false}`)
	if resp.StatusCode != http.StatusOK || resp.Proto != "HTTP/1.1" || resp.Header.Get("Content-Type") != "application/connect+json" ||
		resp.Header.Get("Content-Encoding") != "" {
		t.Errorf("%s %s %v", resp.Proto, resp.Status, resp.Header)
	}
	messages, end := frames(t, body)
	if len(messages) != 4 || end != "{}" {
		t.Fatalf("%q, and at the end %q", messages, end)
	}
	var start struct {
		Event struct{ Start struct{ PID uint32 } }
	}
	if err := json.Unmarshal([]byte(messages[0]), &start); err != nil || start.Event.Start.PID == 0 {
		t.Errorf("the first message is %s, %v", messages[0], err)
	}
	for _, want := range []string{
		`{"event":{"data":{"stdout":"` + base64.StdEncoding.EncodeToString([]byte("a\xc3")) + `"}}}`,
		`{"event":{"data":{"stderr":"ZQ=="}}}`,
	} {
		if messages[1] != want && messages[2] != want {
			t.Errorf("%s is not among %q", want, messages)
		}
	}
	if got := strings.ReplaceAll(messages[3], " ", ""); got != `{"event":{"end":{"exited":true,"status":"exitstatus0"}}}` {
		t.Errorf("the end is %s", messages[3])
	}
	for _, c := range []struct{ procedure, message, code, says string }{
		{"/process.Process/Start", `{"process":{"cmd":"true","cwd":"/none"}}`, "invalid_argument", "cwd '/none' does not exist"},
		{"/process.Process/Connect", `{"process":{"pid":2147483647}}`, "not_found", "process with pid 2147483647 not found"},
		{"/filesystem.Filesystem/WatchDir", `{"path":"/none"}`, "not_found", "path '/none' does not exist"},
	} {
		resp, body := post(c.procedure, c.message)
		messages, end := frames(t, body)
		var last struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(end), &last); err != nil || resp.StatusCode != http.StatusOK || len(messages) > 0 || last.Error.Code != c.code || last.Error.Message != c.says {
			t.Errorf("%s: %d, %q, %s", c.procedure, resp.StatusCode, messages, end)
		}
	}
}

// Headers and the start come while the process has yet to say anything.
func TestStartIsToldAtOnce(t *testing.T) {
	g := newGuest(t)
	req, err := http.NewRequestWithContext(within(t), http.MethodPost, g.url+"/process.Process/Start",
		bytes.NewReader(envelope([]byte(`{"process":{"cmd":"cat"}}`))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/connect+json")
	resp, err := g.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	head := make([]byte, len(`.....{"event":{"start":`))
	if _, err := io.ReadFull(resp.Body, head); err != nil || !strings.HasSuffix(strings.ReplaceAll(string(head), " ", ""), `{"event":{"start":`) {
		t.Errorf("%q, %v", head, err)
	}
}

// Python's SDK gives every call a timeout; it bounds the call and nothing else.
func TestTimeoutOfACall(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "POST", "/process.Process/List", strings.NewReader("{}"), "Content-Type", "application/json", "Connect-Timeout-Ms", "60000")
	g.want(t, resp, body, 200, "{}")
	r, err := begin(within(t), g.process, as("", sh("sleep 300")))
	if err != nil {
		t.Fatal(err)
	}
	defer r.stream.Close()
	resp, body = g.do(t, "POST", "/process.Process/SendSignal", strings.NewReader(fmt.Sprintf(`{"process":{"pid":%d},"signal":"SIGNAL_SIGKILL"}`, r.pid)),
		"Content-Type", "application/json", "Connect-Timeout-Ms", "60000")
	g.want(t, resp, body, 200, "{}")
	if err := r.finish(t); err != nil {
		t.Error(err)
	}
}

func TestIntervalOfKeepAlives(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": 90 * time.Second, "50": 50 * time.Second, "0": 90 * time.Second, "-1": 90 * time.Second, "soon": 90 * time.Second, "9999999999999": 90 * time.Second,
	} {
		if got := keepAlive(http.Header{"Keepalive-Ping-Interval": {header}}); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func TestMultipartForOnePath(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	kind, body := parts(t, "file", "a", "1", "b", "2") // both would be the one that is named
	resp, answer := g.do(t, "POST", at(dir+"/f"), body, "Content-Type", kind)
	g.want(t, resp, answer, 400, "more than once")
	onlyEntries(t, dir)
	// What is to be noted is noted of every file.
	kind, body = parts(t, "file", dir+"/a", "1", dir+"/b", "2")
	resp, answer = g.do(t, "POST", "/files", body, "Content-Type", kind, "X-Metadata-Key", "v")
	g.want(t, resp, answer, 200, `"name":"b","type":"file","metadata":{"key":"v"}`)
	for _, name := range []string{"/a", "/b"} {
		wantMetadata(t, g, dir+name, map[string]string{"key": "v"})
	}
}

func TestComposeOnAFullDisk(t *testing.T) {
	g := newGuest(t)
	dir, full := t.TempDir(), t.TempDir()
	if err := unix.Mount("none", full, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if err := os.WriteFile(dir+"/f", make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	resp, body := g.do(t, "POST", "/files/compose", strings.NewReader(`{"source_paths":["`+dir+`/f"],"destination":"`+full+`/to"}`))
	g.want(t, resp, body, 507, "not enough disk space")
	onlyEntries(t, full)
	onlyEntries(t, dir, "f")
}

// Files are never held in memory, neither of them that come nor of them that go.
func TestFilesNeedLittleMemory(t *testing.T) {
	g := newGuest(t)
	const size, little = 64 << 20, 16 << 20 // in bytes
	path := memoryDir(t) + "/f"
	for _, zipped := range []string{"identity", "gzip"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		resp, body := g.do(t, "POST", at(path), io.LimitReader(zeros{}, size), "Content-Type", octets)
		g.want(t, resp, body, 200, "")
		req, err := http.NewRequestWithContext(within(t), http.MethodGet, g.url+at(path), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", zipped)
		resp, err = g.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || zipped == "identity" && n != size || n == 0 {
			t.Errorf("%s: %d bytes came, %v", zipped, n, err)
		}
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > little {
			t.Errorf("%s: %d bytes were allocated for a file of %d, both ways", zipped, took, size)
		}
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The patience with an upload is for its next bytes, not for all of it.
func TestUploadThatBringsNothing(t *testing.T) {
	const idle = 50 * time.Millisecond
	failed := make(chan error, 1)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, &impatientReader{body: r.Body, control: http.NewResponseController(w), idle: idle})
		failed <- uploadError(err)
	}))
	defer front.Close()
	g := &guest{url: front.URL}
	conn := g.half(t, "/files", []byte("begins"))
	if err := await(t, failed); !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), "nothing of the upload came") {
		t.Errorf("%v", err)
	}
	_ = conn.Close()
}

// A request whose message does not come is given up; the answer to one that has come may
// take as long as it likes.
func TestRequestsThatStopInTheMiddle(t *testing.T) {
	const idle = 50 * time.Millisecond
	read := make(chan error, 1)
	front := httptest.NewServer(prompt(idle, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		if err == nil {
			select {
			case <-r.Context().Done(): // as the server tells when it cannot read on
				err = r.Context().Err()
			case <-time.After(4 * idle):
			}
		}
		read <- err
	})))
	defer front.Close()
	g := &guest{url: front.URL, http: front.Client()}
	g.half(t, "/process.Process/Start", []byte("begins"))
	if err := await(t, read); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("half a message: %v", err)
	}
	g.do(t, "POST", "/process.Process/Start", strings.NewReader("whole"))
	if err := await(t, read); err != nil {
		t.Errorf("a whole message: %v", err)
	}
}

func await(t *testing.T, from chan error) error {
	t.Helper()
	select {
	case err := <-from:
		return err
	case <-time.After(patience):
		t.Fatal("it is waited for")
		return nil
	}
}

// A relative path is the home's wherever one can be given, whatever the default directory.
func TestRelativePathsAreOfTheHome(t *testing.T) {
	g := newGuest(t)
	home, workdir := t.TempDir(), t.TempDir()
	resp, body := g.do(t, "POST", "/init", strings.NewReader(`{"defaultWorkdir":"`+workdir+`"}`))
	g.want(t, resp, body, 204, "")
	rel, err := filepath.Rel("/root", home) // root's home is what it is
	if err != nil {
		t.Fatal(err)
	}
	resp, body = g.do(t, "POST", at(rel+"/f"), strings.NewReader("x"), "Content-Type", octets)
	g.want(t, resp, body, 200, `"path":"`+home+`/f"`)
	req := sh("pwd")
	req.Process.Cwd = &rel
	if r := runAll(t, g.process, as("", req)); r.stdout.String() != home+"\n" {
		t.Errorf("a command starts in %q", &r.stdout)
	}
	list, err := g.files.ListDir(t.Context(), as("", &filesystempb.ListDirRequest{Path: rel}))
	if err != nil || len(list.Msg.GetEntries()) != 1 || list.Msg.GetEntries()[0].GetPath() != home+"/f" {
		t.Errorf("%v, %v", list, err)
	}
	if stat, err := g.files.Stat(t.Context(), as("", &filesystempb.StatRequest{})); err != nil || stat.Msg.GetEntry().GetPath() != workdir {
		t.Errorf("nothing is %v, %v", stat, err)
	}
}

// Input for what has none is refused, whether there never was any or it is closed.
func TestInputThatCannotBeTaken(t *testing.T) {
	g := newGuest(t)
	send := func(pid uint32, text string) error {
		_, err := g.jsonProc.SendInput(t.Context(), as("", &processpb.SendInputRequest{
			Process: byPID(pid), Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte(text)}},
		}))
		return err
	}
	without, err := begin(within(t), g.process, as("", sh("test /proc/self/fd/0 -ef /dev/null && echo null; sleep 300")))
	if err != nil {
		t.Fatal(err)
	}
	wantConnect(t, send(without.pid, "x"), connect.CodeInternal, "stdin")
	if !without.next(t) || without.stdout.String() != "null\n" {
		t.Errorf("its stdin is %q", &without.stdout)
	}
	closed, err := begin(within(t), g.process, as("", &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "sleep", Args: []string{"300"}}}))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := g.process.CloseStdin(t.Context(), as("", &processpb.CloseStdinRequest{Process: byPID(closed.pid)})); err != nil {
			t.Errorf("closing: %v", err)
		}
	}
	wantConnect(t, send(closed.pid, "x"), connect.CodeInternal, "stdin")
	kill(t, g, without, closed)
}

// kill kills commands and waits for their ends.
func kill(t *testing.T, g *guest, all ...*run) {
	t.Helper()
	for _, r := range all {
		_, err := g.process.SendSignal(t.Context(), as("", &processpb.SendSignalRequest{Process: byPID(r.pid), Signal: processpb.Signal_SIGNAL_SIGKILL}))
		if err == nil {
			err = r.finish(t)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// A keystroke's echo must not wait for a large piece: what terminals print comes in small ones.
func TestPiecesOfTerminals(t *testing.T) {
	g := newGuest(t)
	r, err := begin(within(t), g.process, as("", inTerminal("/bin/sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x")))
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for r.next(t) {
		if n := r.pty.Len(); n > 16<<10 {
			t.Errorf("a piece has %d bytes", n)
		}
		total += r.pty.Len()
		r.pty.Reset()
	}
	if total != 300_000 || r.end.GetExitCode() != 0 {
		t.Errorf("%d bytes, %v, %v", total, r.end, r.stream.Err())
	}
	_ = r.stream.Close()
}

// A login shell reads the profile of its user, as the SDKs' commands are to have it.
func TestLoginShellsReadTheProfile(t *testing.T) {
	g := newGuest(t)
	home := t.TempDir()
	if err := os.WriteFile(home+"/.profile", []byte("FROM_PROFILE=yes\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	noStdin := false
	r := runAll(t, g.jsonProc, as("", &processpb.StartRequest{Stdin: &noStdin, Process: &processpb.ProcessConfig{
		Cmd: "/bin/bash", Args: []string{"-l", "-c", "echo $FROM_PROFILE"}, Envs: map[string]string{"HOME": home},
	}}))
	if r.stdout.String() != "yes\n" {
		t.Errorf("%q, %q", &r.stdout, &r.stderr)
	}
}

func TestOwnersWithoutANameAreNumbers(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	if err := os.Lchown(dir, 54321, 54322); err != nil {
		t.Fatal(err)
	}
	stat, err := g.jsonFiles.Stat(t.Context(), as("", &filesystempb.StatRequest{Path: dir}))
	if err != nil {
		t.Fatal(err)
	}
	if e := stat.Msg.GetEntry(); e.GetOwner() != "54321" || e.GetGroup() != "54322" || e.GetSize() <= 0 || !strings.HasPrefix(e.GetPermissions(), "d") {
		t.Errorf("%v", e)
	}
}
