package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const fakeKey = "wrn_0123456789012345678901234567890123456789"

// fakeID is the id of the n-th sandbox that a fake server makes.
func fakeID(n int) string { return fmt.Sprintf("sb%020d", n) }

// fakeServer answers the part of the API that the commands use. Its sandboxes are rows in
// memory that share one directory of this machine; their commands are run as programs of
// this machine.
type fakeServer struct {
	http     *httptest.Server
	home     string
	creating chan struct{} // gets a value when a create has come in
	started  chan struct{} // gets a value when a command runs
	hold     chan struct{} // closed to let held creates go on

	mu        sync.Mutex
	boxes     []api.Sandbox
	made      int
	templates []api.Template // snapshots
	processes []api.Process
	signals   []string // that processes got
	terminals map[string]*fakeTerminal
	misdeeds  []string
	refused   bool // the first who came back to "flaky"
}

func newFakeServer(home string) *fakeServer {
	s := &fakeServer{
		home: home, hold: make(chan struct{}),
		creating: make(chan struct{}, 100), started: make(chan struct{}, 100),
		terminals: map[string]*fakeTerminal{},
	}
	mux := http.NewServeMux()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-API-Key") != fakeKey {
				fault.WriteHTTP(w, fault.New(fault.Unauthorized, "unknown API key"))
				return
			}
			for name, values := range r.URL.Query() {
				if values[0] == "" && !strings.HasPrefix(name, "metadata.") {
					fault.WriteHTTP(w, fault.New(fault.InvalidRequest, "parameter %q must not be empty", name))
					return
				}
			}
			if err := h(w, r); err != nil {
				fault.WriteHTTP(w, err)
			}
		})
	}
	handle("GET /readyz", func(w http.ResponseWriter, _ *http.Request) error { return answer(w, 200, api.Health{Status: api.Ok}) })
	handle("POST /v1/sandboxes", s.create)
	handle("GET /v1/sandboxes", s.list)
	handle("GET /v1/sandboxes/{id}", s.get)
	handle("DELETE /v1/sandboxes/{id}", s.remove)
	s.handleStates(handle)
	handle("POST /v1/sandboxes/{id}/exec", s.exec)
	handle("GET /v1/sandboxes/{id}/exec/stream", s.execStream)
	handle("GET /v1/sandboxes/{id}/processes", s.listProcesses)
	handle("GET /v1/sandboxes/{id}/ports", fakePortList)
	handle("POST /v1/sandboxes/{id}/ports/{port}/link", fakePortLink)
	handle("GET /v1/sandboxes/{id}/pty", s.terminal)
	handle("DELETE /v1/sandboxes/{id}/processes/{process}", s.signal)
	handle("GET /v1/sandboxes/{id}/processes/{process}/stream", s.follow)
	handle("POST /v1/sandboxes/{id}/files/stat", s.stat)
	handle("POST /v1/sandboxes/{id}/files/stream/write", s.write)
	handle("POST /v1/sandboxes/{id}/files/stream/read", s.read)
	s.http = httptest.NewServer(mux)
	return s
}

func (s *fakeServer) url() string { return s.http.URL }

func (s *fakeServer) close() {
	s.letCreate()
	s.mu.Lock()
	for _, t := range s.terminals {
		t.do(terminalMessage{Type: "kill"})
		t.cut()
	}
	s.mu.Unlock()
	s.http.CloseClientConnections()
	s.http.Close()
}

func (s *fakeServer) letCreate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.hold:
	default:
		close(s.hold)
	}
}

func (s *fakeServer) held() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hold
}

func (s *fakeServer) misbehave(how string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.misdeeds = append(s.misdeeds, how)
	if how == "holds-creates" {
		s.hold = make(chan struct{})
	}
}

func (s *fakeServer) does(how string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.misdeeds, how)
}

func (s *fakeServer) count() (now, made int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.boxes), s.made
}

func answer(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// body decodes a request strictly: a field that the API does not know is an error.
func body[T any](r *http.Request) (T, error) {
	var v T
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return v, fault.New(fault.InvalidRequest, "bad body: %v", err)
	}
	return v, nil
}

func (s *fakeServer) create(w http.ResponseWriter, r *http.Request) error {
	want, err := body[api.CreateSandboxRequest](r)
	if err != nil {
		return err
	}
	if want.Template != "" && want.Template != "base" {
		return fault.New(fault.NotFound, "there is no template %q; there is base", want.Template)
	}
	s.creating <- struct{}{}
	if s.does("holds-creates") {
		<-s.held()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	created := time.Now().Add(-90 * time.Second)
	sb := api.Sandbox{
		ID: fakeID(s.made), Status: api.SandboxStatusRunning, Template: "base", Vcpus: max(want.Vcpus, 1),
		MemoryMb: 512, DiskSizeMb: 10240, TimeoutSec: want.TimeoutSec, OnTimeout: api.Pause, Runtime: "gvisor",
		HostID: "host-1", HostIP: "10.0.0.1", GuestIP: "10.0.0.2", Metadata: want.Metadata,
		CreatedAt: created, LastUpdated: created,
	}
	if want.MemoryMb > 0 {
		sb.MemoryMb = want.MemoryMb
	}
	if want.DiskSizeMb > 0 {
		sb.DiskSizeMb = want.DiskSizeMb
	}
	if want.OnTimeout != "" {
		sb.OnTimeout = want.OnTimeout
	}
	s.boxes = append(s.boxes, sb)
	return answer(w, http.StatusCreated, sb)
}

// list pages by two, so that the client has to ask again.
func (s *fakeServer) list(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	var found []api.Sandbox
	for _, sb := range s.boxes {
		match := q.Get("status") == "" || q.Get("status") == string(sb.Status)
		for key := range q {
			if label, ok := strings.CutPrefix(key, "metadata."); ok && sb.Metadata[label] != q.Get(key) {
				match = false
			}
		}
		if match {
			found = append(found, sb)
		}
	}
	from := 0
	if cursor := q.Get("cursor"); cursor != "" {
		if _, err := fmt.Sscan(cursor, &from); err != nil {
			return fault.New(fault.InvalidRequest, "bad cursor")
		}
	}
	const page = 2
	to := min(from+page, len(found))
	if to < len(found) {
		w.Header().Set("X-Next-Cursor", fmt.Sprint(to))
	}
	return answer(w, http.StatusOK, append([]api.Sandbox{}, found[from:to]...))
}

// find returns the sandbox that a request names.
func (s *fakeServer) find(r *http.Request) (api.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sb := range s.boxes {
		if sb.ID == r.PathValue("id") {
			return sb, nil
		}
	}
	return api.Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q", r.PathValue("id"))
}

func (s *fakeServer) get(w http.ResponseWriter, r *http.Request) error {
	sb, err := s.find(r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, sb)
}

func (s *fakeServer) remove(w http.ResponseWriter, r *http.Request) error {
	sb, err := s.find(r)
	if err != nil {
		return err
	}
	if s.does("refuses-deletes") {
		return fault.New(fault.HostUnavailable, "the host is away")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boxes = slices.DeleteFunc(s.boxes, func(other api.Sandbox) bool { return other.ID == sb.ID })
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *fakeServer) listProcesses(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return answer(w, http.StatusOK, api.ProcessList{Processes: s.processes})
}

// path is where a path of a sandbox is on this machine.
func (s *fakeServer) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(s.home, p)
}

func (s *fakeServer) stat(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	want, err := body[api.PathRequest](r)
	if err != nil {
		return err
	}
	path := s.path(want.Path)
	info, err := os.Lstat(path)
	if err != nil {
		return fault.New(fault.NotFound, "%s does not exist", want.Path)
	}
	kind := api.File
	if info.IsDir() {
		kind = api.Directory
	} else if info.Mode()&os.ModeSymlink != 0 {
		kind = api.Symlink
	}
	return answer(w, http.StatusOK, api.FileResult{Entry: api.FileEntry{
		Name: info.Name(), Path: path, Type: kind, Size: info.Size(), Mode: int64(info.Mode().Perm()), ModifiedAt: info.ModTime().Unix(),
	}})
}

func (s *fakeServer) write(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	if r.Header.Get("Content-Type") != "application/octet-stream" {
		return fault.New(fault.InvalidRequest, "bad content type")
	}
	path := s.path(r.URL.Query().Get("path"))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return fault.New(fault.InvalidRequest, "cannot write: %v", err)
	}
	defer f.Close()
	if _, err := io.Copy(f, r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *fakeServer) read(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	want, err := body[api.PathRequest](r)
	if err != nil {
		return err
	}
	f, err := os.Open(s.path(want.Path))
	if err != nil {
		return fault.New(fault.NotFound, "%s does not exist", want.Path)
	}
	defer f.Close()
	if s.does("cuts-streams") {
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write([]byte("only the beginning"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, err = io.Copy(w, f)
	return err
}
