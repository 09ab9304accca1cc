package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/account"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const testKey = "wrn_0123456789012345678901234567890123456789"

// The fakes do what a test fills in; a call that it did not expect panics.

type fakeSandboxes struct {
	create func(sandbox.Options) (sandbox.Sandbox, error)
	list   func(sandbox.Query) (sandbox.Page, error)
	get    func(id string) (sandbox.Sandbox, error)
	delete func(id string) error
}

type fakeStates struct {
	ping        func(id string) error
	pause       func(id string) (sandbox.Sandbox, error)
	resume      func(id string, wait time.Duration) (sandbox.Sandbox, error)
	setTimeouts func(id string, t sandbox.Timeouts) (sandbox.Sandbox, error)
	metrics     func(id string, before time.Duration) ([]sandbox.Point, error)
}

func (f *fakeStates) Ping(_ context.Context, id string) error { return f.ping(id) }
func (f *fakeStates) Pause(_ context.Context, id string) (sandbox.Sandbox, error) {
	return f.pause(id)
}
func (f *fakeStates) Resume(_ context.Context, id string, wait time.Duration) (sandbox.Sandbox, error) {
	return f.resume(id, wait)
}
func (f *fakeStates) SetTimeouts(_ context.Context, id string, t sandbox.Timeouts) (sandbox.Sandbox, error) {
	return f.setTimeouts(id, t)
}
func (f *fakeStates) Metrics(_ context.Context, id string, before time.Duration) ([]sandbox.Point, error) {
	return f.metrics(id, before)
}

type fakeSnapshots struct {
	fork   func(id string, count int, timeout *time.Duration) ([]sandbox.Sandbox, error)
	create func(o sandbox.SnapshotOptions) (sandbox.Snapshot, error)
	list   func() ([]sandbox.Snapshot, error)
	find   func(nameOrID string) (sandbox.Snapshot, error)
	delete func(nameOrID string) error
}

func (f *fakeSnapshots) Fork(_ context.Context, id string, count int, timeout *time.Duration) ([]sandbox.Sandbox, error) {
	return f.fork(id, count, timeout)
}
func (f *fakeSnapshots) Create(_ context.Context, o sandbox.SnapshotOptions) (sandbox.Snapshot, error) {
	return f.create(o)
}
func (f *fakeSnapshots) List(context.Context) ([]sandbox.Snapshot, error) { return f.list() }
func (f *fakeSnapshots) Find(_ context.Context, nameOrID string) (sandbox.Snapshot, error) {
	return f.find(nameOrID)
}
func (f *fakeSnapshots) Delete(_ context.Context, nameOrID string) error { return f.delete(nameOrID) }
func (f *fakeSnapshots) Own(context.Context) ([]sandbox.OwnTemplate, error) {
	return []sandbox.OwnTemplate{{Name: "base", Resources: sandbox.Resources{VCPUs: 1, MemoryMB: 512, DiskMB: 10240}}}, nil
}

func (f *fakeSandboxes) Create(_ context.Context, o sandbox.Options) (sandbox.Sandbox, error) {
	return f.create(o)
}
func (f *fakeSandboxes) List(_ context.Context, q sandbox.Query) (sandbox.Page, error) {
	return f.list(q)
}
func (f *fakeSandboxes) Get(_ context.Context, id string) (sandbox.Sandbox, error) { return f.get(id) }
func (f *fakeSandboxes) Delete(_ context.Context, id string) error                 { return f.delete(id) }

type fakeProcesses struct {
	exec       func(ctx context.Context, cmd sandbox.Command, stdin []byte) (sandbox.Result, error)
	background func(sandbox.Command) (sandbox.Started, error)
	list       func() ([]sandbox.Process, error)
	signal     func(sandbox.Selector, sandbox.Signal) error
	running    func(id string) error
	open       func(sandbox.Command) (sandbox.Session, error)
	connect    func(sandbox.Follow) (sandbox.Session, error)
}

func (f *fakeProcesses) Exec(ctx context.Context, _ string, cmd sandbox.Command, stdin []byte) (sandbox.Result, error) {
	return f.exec(ctx, cmd, stdin)
}
func (f *fakeProcesses) Background(_ context.Context, _ string, cmd sandbox.Command) (sandbox.Started, error) {
	return f.background(cmd)
}
func (f *fakeProcesses) List(context.Context, string) ([]sandbox.Process, error) { return f.list() }
func (f *fakeProcesses) Signal(_ context.Context, _ string, sel sandbox.Selector, sig sandbox.Signal) error {
	return f.signal(sel, sig)
}
func (f *fakeProcesses) CheckRunning(_ context.Context, id string) error { return f.running(id) }
func (f *fakeProcesses) Open(_ context.Context, _ string, cmd sandbox.Command) (sandbox.Session, error) {
	return f.open(cmd)
}

func (f *fakeProcesses) Connect(_ context.Context, _ string, follow sandbox.Follow) (sandbox.Session, error) {
	return f.connect(follow)
}

type fakeFiles struct {
	Files // for the calls that no test makes
	list  func(user, path string, depth int) ([]sandbox.FileEntry, error)
	stat  func(user, path string) (sandbox.FileEntry, error)
	move  func(from, to string) (sandbox.FileEntry, error)
	read  func(ctx context.Context, path string) (sandbox.Contents, error)
	write func(user, path string, r io.Reader, size int64) error
}

func (f *fakeFiles) List(_ context.Context, _, user, path string, depth int) ([]sandbox.FileEntry, error) {
	return f.list(user, path, depth)
}
func (f *fakeFiles) Stat(_ context.Context, _, user, path string) (sandbox.FileEntry, error) {
	return f.stat(user, path)
}
func (f *fakeFiles) Move(_ context.Context, _, _, from, to string) (sandbox.FileEntry, error) {
	return f.move(from, to)
}
func (f *fakeFiles) Read(ctx context.Context, _, _, path string) (sandbox.Contents, error) {
	return f.read(ctx, path)
}
func (f *fakeFiles) Write(_ context.Context, _, user, path string, r io.Reader, size int64) error {
	return f.write(user, path, r, size)
}

type fakeAccounts struct{}

func (fakeAccounts) Verify(_ context.Context, secret string) (account.Key, error) {
	if secret != testKey {
		return account.Key{}, fault.New(fault.Unauthorized, "this API key is not known here")
	}
	return account.Key{}, nil
}

// server is the API on port 0 over fakes.
type server struct {
	*httptest.Server
	sandboxes fakeSandboxes
	states    fakeStates
	snapshots fakeSnapshots
	processes fakeProcesses
	files     fakeFiles
	ready     func(context.Context) error
	log       syncBuffer
	api       *API
}

func serve(t testing.TB) *server {
	t.Helper()
	s := &server{ready: func(context.Context) error { return nil }}
	h, err := New(Config{
		Sandboxes: &s.sandboxes, States: &s.states, Snapshots: &s.snapshots, Processes: &s.processes, Files: &s.files, Accounts: fakeAccounts{},
		Ports: fakeWeb{}, Web: fakeWeb{},
		Ready: func(ctx context.Context) error { return s.ready(ctx) },
		Log:   slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.api = h
	s.Server = httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// answer is a response read to its end.
type answer struct {
	status int
	header http.Header
	body   string
}

// failure is the code and the message of an error.
func (a answer) failure(t testing.TB) (code, message string) {
	t.Helper()
	var body struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || body.Error.Code == "" {
		t.Fatalf("not an error: %d %q", a.status, a.body)
	}
	if got := a.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("an error of type %q", got)
	}
	return body.Error.Code, body.Error.Message
}

// do sends a request with the key. A header of "" is removed.
func (s *server) do(t testing.TB, method, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", testKey)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Del(header[i])
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(raw)}
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
