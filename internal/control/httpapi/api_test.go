package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

var t0 = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func TestCreate(t *testing.T) {
	s := serve(t)
	var got sandbox.Options
	s.sandboxes.create = func(o sandbox.Options) (sandbox.Sandbox, error) {
		got = o
		return sandbox.Sandbox{
			ID: "sb1", Status: sandbox.Running, Template: "base", OnTimeout: sandbox.Kill, Timeout: time.Minute,
			Resources: sandbox.Resources{VCPUs: 1, MemoryMB: 512, DiskMB: 10240}, CreatedAt: t0, UpdatedAt: t0,
		}, nil
	}
	a := s.do(t, "POST", "/v1/sandboxes", `{"template":"t","vcpus":2,"memory_mb":1024,"disk_size_mb":99,"timeout_sec":60,
		"deadline_sec":600,"on_timeout":"kill","env":{"A":"1"},"user":"u","metadata":{"k":"v"}}`)
	if a.status != http.StatusCreated {
		t.Fatal(a)
	}
	want := sandbox.Options{
		Template: "t", Resources: sandbox.Resources{VCPUs: 2, MemoryMB: 1024, DiskMB: 99},
		Timeout: time.Minute, Deadline: 10 * time.Minute, OnTimeout: sandbox.Kill,
		Env: map[string]string{"A": "1"}, User: "u", Metadata: map[string]string{"k": "v"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(a.body), &fields); err != nil {
		t.Fatal(err)
	}
	wantFields := map[string]any{
		"id": "sb1", "status": "running", "template": "base", "vcpus": 1., "memory_mb": 512., "disk_size_mb": 10240.,
		"timeout_sec": 60., "on_timeout": "kill", "runtime": "", "host_id": "", "host_ip": "", "guest_ip": "",
		"metadata": map[string]any{}, "created_at": "2026-05-04T03:02:01Z", "last_updated": "2026-05-04T03:02:01Z",
		"ends_at": "2026-05-04T03:03:01Z", "allow_public_traffic": true, "auto_resume": false,
	}
	if diff := cmp.Diff(wantFields, fields); diff != "" {
		t.Error(diff)
	}
	for _, empty := range []string{"", "{}"} {
		if a := s.do(t, "POST", "/v1/sandboxes", empty); a.status != http.StatusCreated || !reflect.DeepEqual(got, sandbox.Options{}) {
			t.Errorf("body %q: %d, asked for %+v", empty, a.status, got)
		}
	}
}

func TestBadRequestsAreExplained(t *testing.T) {
	s := serve(t)
	for _, c := range []struct {
		method, path, body string
		code, message      string
	}{
		{"POST", "/v1/sandboxes", `{"vcpus":0}`, "invalid_request", `field "vcpus" must be at least 1`},
		{"POST", "/v1/sandboxes", `{"vcpus":-3}`, "invalid_request", `field "vcpus" must be at least 1`},
		{"POST", "/v1/sandboxes", `{"memory_mb":99999999}`, "invalid_request", `field "memory_mb" must be at most 16777216`},
		{"POST", "/v1/sandboxes", `{"vcpus":1.5}`, "invalid_request", `field "vcpus" must be a whole number`},
		{"POST", "/v1/sandboxes", `{"vcpus":"1"}`, "invalid_request", `field "vcpus" must be a whole number`},
		{"POST", "/v1/sandboxes", `{"vcpus":null}`, "invalid_request", `field "vcpus" must be a whole number`},
		{"POST", "/v1/sandboxes", `{"on_timeout":"x"}`, "invalid_request", `field "on_timeout" must be one of pause, kill`},
		{"POST", "/v1/sandboxes", `{"cpus":1}`, "invalid_request", `there is no field "cpus"; see /docs for those that there are`},
		{"POST", "/v1/sandboxes", `{"template":""}`, "invalid_request", `field "template" must not be empty`},
		{"POST", "/v1/sandboxes", `{"env":{"A":1}}`, "invalid_request", `field "env.A" must be a string`},
		{"POST", "/v1/sandboxes", `[]`, "invalid_request", `the body must be an object`},
		{"POST", "/v1/sandboxes", "{\n  \"vcpus\": 1,\n  oops\n}", "invalid_request", `the body is not valid JSON: invalid character 'o' looking for beginning of object key string at line 3, column 3`},
		{"POST", "/v1/sandboxes", `{"vcpus":`, "invalid_request", `the body is not valid JSON: it ends too early`},
		{"POST", "/v1/sandboxes", `{} {}`, "invalid_request", `the body is not valid JSON: something follows its end at line 1, column 4`},
		{"POST", "/v1/sandboxes", `{"vcpus":1.0}`, "invalid_request", `field "vcpus" cannot be number 1.0`},
		{"POST", "/v1/sandboxes/sb1/exec", `{}`, "invalid_request", `field "cmd" is missing`},
		{"POST", "/v1/sandboxes/sb1/exec", ``, "invalid_request", `the body is missing; send a JSON object`},
		{"POST", "/v1/sandboxes/sb1/exec", `{"cmd":"x","args":["a",2]}`, "invalid_request", `field "args[1]" must be a string`},
		{"POST", "/v1/sandboxes/sb1/exec", `{"cmd":"x","tag":"a b"}`, "invalid_request", `field "tag" must match ^[A-Za-z0-9._:-]+$`},
		{"POST", "/v1/sandboxes/sb1/files/read", `{"path":""}`, "invalid_request", `field "path" must not be empty`},
		{"POST", "/v1/sandboxes/sb1/files/list", `{"path":"/","depth":0}`, "invalid_request", `field "depth" must be at least 1`},
		{"GET", "/v1/sandboxes?limit=0", ``, "invalid_request", `parameter "limit" must be at least 1`},
		{"GET", "/v1/sandboxes?limit=1001", ``, "invalid_request", `parameter "limit" must be at most 1000`},
		{"GET", "/v1/sandboxes?limit=x", ``, "invalid_request", `parameter "limit" has the wrong form; see /docs for what it may be`},
		{"GET", "/v1/sandboxes?status=x", ``, "invalid_request", `parameter "status" must be one of pending, starting, running, pausing, paused, resuming, stopping, stopped, missing, error`},
		{"GET", "/v1/sandboxes?metadata.a=1&metadata.a=2", ``, "invalid_request", `parameter "metadata.a" is given more than once`},
		{"DELETE", "/v1/sandboxes/sb1/processes/1?signal=SIGHUP", ``, "invalid_request", `parameter "signal" must be one of SIGKILL, SIGTERM`},
		{"GET", "/v1/nothing", ``, "not_found", `there is nothing at /v1/nothing; see /docs for what there is`},
		{"GET", "/", ``, "not_found", `there is nothing at /; see /docs for what there is`},
		{"PATCH", "/v1/sandboxes/sb1", ``, "method_not_allowed", `PATCH is not possible at /v1/sandboxes/sb1; use DELETE, GET, HEAD`},
		{"GET", "/v1/sandboxes/sb1/exec", ``, "method_not_allowed", `GET is not possible at /v1/sandboxes/sb1/exec; use POST`},
	} {
		a := s.do(t, c.method, c.path, c.body)
		code, message := a.failure(t)
		if code != c.code || message != c.message || a.status != fault.HTTPStatus(fault.Code(c.code)) {
			t.Errorf("%s %s %s:\n got %d %s %s\nwant %s %s", c.method, c.path, c.body, a.status, code, message, c.code, c.message)
		}
	}
	a := s.do(t, "POST", "/v1/sandboxes", "{}", "Content-Type", "text/plain")
	if _, message := a.failure(t); message != `header Content-Type is "text/plain" and must be application/json here` {
		t.Error(message)
	}
	a = s.do(t, "POST", "/v1/sandboxes", `{"user":"`+strings.Repeat("x", maxJSON)+`"}`)
	if code, _ := a.failure(t); code != "payload_too_large" {
		t.Error(a)
	}
}

func TestKeys(t *testing.T) {
	s := serve(t)
	s.sandboxes.delete = func(string) error { return nil }
	for name, c := range map[string]struct {
		header []string
		want   int
	}{
		"its header":     {nil, http.StatusNoContent},
		"in any case":    {[]string{"X-API-Key", "", "x-api-KEY", testKey}, http.StatusNoContent},
		"as bearer":      {[]string{"X-API-Key", "", "Authorization", "bearer " + testKey}, http.StatusNoContent},
		"none":           {[]string{"X-API-Key", ""}, http.StatusUnauthorized},
		"a wrong one":    {[]string{"X-API-Key", "wrn_1"}, http.StatusUnauthorized},
		"another scheme": {[]string{"X-API-Key", "", "Authorization", "Basic " + testKey}, http.StatusUnauthorized},
	} {
		if a := s.do(t, "DELETE", "/v1/sandboxes/sb1", "", c.header...); a.status != c.want {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	// A stranger learns nothing of what is behind the door.
	for _, path := range []string{"/v1/sandboxes?limit=x", "/v1/nothing", "/v1/sandboxes/sb1/exec/stream", "/v1/capsules"} {
		if a := s.do(t, "GET", path, "", "X-API-Key", ""); a.status != http.StatusUnauthorized {
			t.Errorf("%s without a key: %d", path, a.status)
		}
	}
}

func TestListPagesAndFilters(t *testing.T) {
	s := serve(t)
	var got sandbox.Query
	next := "abc"
	s.sandboxes.list = func(q sandbox.Query) (sandbox.Page, error) {
		got = q
		return sandbox.Page{Next: next}, nil
	}
	a := s.do(t, "GET", "/v1/capsules?status=running&template=t&metadata.a=1&metadata.b.c=x%20y&limit=7&cursor=cc", "")
	want := sandbox.Query{Status: sandbox.Running, Template: "t", Limit: 7, Cursor: "cc", Metadata: map[string]string{"a": "1", "b.c": "x y"}}
	if diff := cmp.Diff(want, got); diff != "" || a.header.Get("X-Next-Cursor") != "abc" || strings.TrimSpace(a.body) != "[]" {
		t.Errorf("%s %+v", diff, a)
	}
	next = ""
	a = s.do(t, "GET", "/v1/sandboxes", "")
	if _, there := a.header["X-Next-Cursor"]; there {
		t.Error("a cursor though there is no more")
	}
}

func TestAliasIsOnlyThePrefix(t *testing.T) {
	s := serve(t)
	s.sandboxes.get = func(id string) (sandbox.Sandbox, error) {
		return sandbox.Sandbox{ID: id}, nil
	}
	a := s.do(t, "GET", "/v1/capsules/a%2Fb", "")
	if !strings.Contains(a.body, `"id":"a/b"`) {
		t.Error(a)
	}
	if a := s.do(t, "GET", "/v1/capsulesque/x", ""); a.status != http.StatusNotFound {
		t.Error(a)
	}
}

func TestExec(t *testing.T) {
	s := serve(t)
	var cmd sandbox.Command
	var stdin string
	res := sandbox.Result{Exit: sandbox.Exit{Code: 3}, Stdout: []byte("ö"), Duration: 1500 * time.Millisecond}
	s.processes.exec = func(_ context.Context, c sandbox.Command, in []byte) (sandbox.Result, error) {
		cmd, stdin = c, string(in)
		return res, nil
	}
	exec := func(body string) api.ExecResult {
		t.Helper()
		a := s.do(t, "POST", "/v1/sandboxes/sb1/exec", body)
		var out api.ExecResult
		if err := json.Unmarshal([]byte(a.body), &out); err != nil || a.status != http.StatusOK {
			t.Fatal(a, err)
		}
		return out
	}
	out := exec(`{"cmd":"c","args":["-x"],"envs":{"A":"1"},"cwd":"/w","user":"u","stdin":"in","tag":"t"}`)
	wantCmd := sandbox.Command{Cmd: "c", Args: []string{"-x"}, Env: map[string]string{"A": "1"}, Cwd: "/w", User: "u", Tag: "t", Timeout: sandbox.DefaultExecTimeout}
	if diff := cmp.Diff(wantCmd, cmd); diff != "" || stdin != "in" {
		t.Errorf("%s stdin %q", diff, stdin)
	}
	want := api.ExecResult{SandboxID: "sb1", Cmd: "c", Stdout: "ö", ExitCode: 3, DurationMs: 1500, Encoding: api.UTF8}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Error(diff)
	}
	res = sandbox.Result{Exit: sandbox.Exit{Code: -1, Signal: "SIGKILL", TimedOut: true}, Stdout: []byte("a"), Stderr: []byte{0xff}, Truncated: true}
	out = exec(`{"cmd":"c","timeout_sec":0}`)
	want = api.ExecResult{SandboxID: "sb1", Cmd: "c", Stdout: "YQ==", Stderr: "/w==", ExitCode: -1, Signal: "SIGKILL", TimedOut: true, Truncated: true, Encoding: api.Base64}
	if diff := cmp.Diff(want, out); diff != "" || cmd.Timeout != 0 {
		t.Errorf("%s timeout %v", diff, cmd.Timeout)
	}

	s.processes.background = func(c sandbox.Command) (sandbox.Started, error) {
		cmd = c
		return sandbox.Started{PID: 5, Tag: "made-up"}, nil
	}
	a := s.do(t, "POST", "/v1/sandboxes/sb1/exec", `{"cmd":"c","background":true}`)
	if a.status != http.StatusAccepted || strings.TrimSpace(a.body) != `{"cmd":"c","pid":5,"sandbox_id":"sb1","tag":"made-up"}` || cmd.Timeout != 0 {
		t.Error(a, cmd.Timeout)
	}
}

func TestExecIsCanceledWithItsClient(t *testing.T) {
	s := serve(t)
	began, ended := make(chan struct{}), make(chan struct{})
	s.processes.exec = func(ctx context.Context, _ sandbox.Command, _ []byte) (sandbox.Result, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return sandbox.Result{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/sandboxes/sb1/exec", strings.NewReader(`{"cmd":"c"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", testKey)
	go func() { <-began; cancel() }()
	if resp, err := s.Client().Do(req); err == nil {
		_ = resp.Body.Close()
		t.Fatal("an answer to nobody")
	}
	wait(t, ended, "the command goes on though its client has gone")
}

func TestProcesses(t *testing.T) {
	s := serve(t)
	var sel sandbox.Selector
	var sig sandbox.Signal
	s.processes.signal = func(p sandbox.Selector, g sandbox.Signal) error { sel, sig = p, g; return nil }
	for path, want := range map[string]struct {
		sel sandbox.Selector
		sig sandbox.Signal
	}{
		"42":                 {sandbox.Selector{PID: 42}, sandbox.SIGKILL},
		"web?signal=SIGTERM": {sandbox.Selector{Tag: "web"}, sandbox.SIGTERM},
		"99999999999":        {sandbox.Selector{Tag: "99999999999"}, sandbox.SIGKILL},
		"0":                  {sandbox.Selector{Tag: "0"}, sandbox.SIGKILL},
	} {
		if a := s.do(t, "DELETE", "/v1/sandboxes/sb1/processes/"+path, ""); a.status != http.StatusNoContent || sel != want.sel || sig != want.sig {
			t.Errorf("%s: %d %+v %s", path, a.status, sel, sig)
		}
	}
	s.processes.list = func() ([]sandbox.Process, error) {
		return []sandbox.Process{{PID: 1, Cmd: "sh"}, {PID: 2, Cmd: "x", Args: []string{"a"}, Tag: "t"}}, nil
	}
	a := s.do(t, "GET", "/v1/sandboxes/sb1/processes", "")
	if strings.TrimSpace(a.body) != `{"processes":[{"args":[],"cmd":"sh","pid":1},{"args":["a"],"cmd":"x","pid":2,"tag":"t"}]}` {
		t.Error(a)
	}
}

func TestFaultsAndPanics(t *testing.T) {
	s := serve(t)
	s.sandboxes.get = func(id string) (sandbox.Sandbox, error) {
		switch id {
		case "secret":
			return sandbox.Sandbox{}, errors.New("password=hunter2")
		case "panic":
			panic("at the disco")
		}
		return sandbox.Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	if code, message := s.do(t, "GET", "/v1/sandboxes/x", "").failure(t); code != "not_found" || message != `there is no sandbox "x"` {
		t.Error(code, message)
	}
	for _, id := range []string{"secret", "panic"} {
		a := s.do(t, "GET", "/v1/sandboxes/"+id, "")
		if code, _ := a.failure(t); code != "internal_error" || strings.Contains(a.body, "hunter2") || strings.Contains(a.body, "disco") {
			t.Error(a)
		}
		if request := a.header.Get("X-Request-Id"); request == "" || !strings.Contains(s.log.String(), request) {
			t.Errorf("request %q is not in the log", request)
		}
	}
	for _, want := range []string{"hunter2", "at the disco", "level=ERROR"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}

func TestOperations(t *testing.T) {
	s := serve(t)
	noKey := []string{"X-API-Key", ""}
	if a := s.do(t, "GET", "/healthz", "", noKey...); a.status != http.StatusOK || strings.TrimSpace(a.body) != `{"status":"ok"}` {
		t.Error(a)
	}
	if a := s.do(t, "GET", "/readyz", "", noKey...); a.status != http.StatusOK {
		t.Error(a)
	}
	s.ready = func(context.Context) error {
		return fault.New(fault.HostUnavailable, "the host agent cannot be reached")
	}
	if code, message := s.do(t, "GET", "/readyz", "", noKey...).failure(t); code != "host_unavailable" || message != "not ready: the host agent cannot be reached" {
		t.Error(code, message)
	}
	if a := s.do(t, "GET", "/openapi.yaml", "", noKey...); a.body != string(api.YAML) {
		t.Error("another description is served")
	}
	docs := s.do(t, "GET", "/docs", "", noKey...)
	if docs.status != http.StatusOK || !strings.Contains(docs.body, "swagger-ui") {
		t.Error(docs)
	}
	// The page must work without the internet: whatever it loads is here.
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(docs.body, -1) {
		if !strings.HasPrefix(m[1], "/docs/") {
			t.Errorf("the page loads %s", m[1])
		}
	}
	if !regexp.MustCompile(`validatorUrl:\s*null`).MatchString(docs.body) {
		t.Error("the page asks a validator on the internet")
	}
	if a := s.do(t, "GET", "/docs/swagger-ui-bundle.js", "", noKey...); a.status != http.StatusOK || len(a.body) < 1<<16 {
		t.Errorf("the page's script: %d, %d bytes", a.status, len(a.body))
	}
}

// wait fails the test when done is not closed in good time.
func wait(t testing.TB, done <-chan struct{}, otherwise string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal(otherwise)
	}
}
