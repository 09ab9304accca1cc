package system_test

import (
	"net/http"
	"strings"
	"testing"
)

// wrong is a request that must be refused.
type wrong struct {
	name    string
	method  string
	path    string // after /v1/sandboxes; {id} is a running sandbox
	body    any
	status  int
	code    string
	message string // what the message must contain
}

func (w wrong) check(t *testing.T, s *sandbox) {
	t.Helper()
	a := s.p.call(t, w.method, "/v1/sandboxes"+strings.ReplaceAll(w.path, "{id}", s.id), w.body)
	code, message := a.fault(t)
	if a.status != w.status || code != w.code || !strings.Contains(message, w.message) {
		t.Errorf("%s: %d %s %q; want %d %s with %q", w.name, a.status, code, message, w.status, w.code, w.message)
	}
}

func post(name, path string, body any, message string) wrong {
	return wrong{name, http.MethodPost, path, body, http.StatusBadRequest, "invalid_request", message}
}

func TestBadCreates(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	const huge = 1 << 23
	cases := []wrong{
		{"unknown template", http.MethodPost, "", object{"template": "nosuch"}, http.StatusNotFound, "not_found", `"nosuch" does not exist`},
		{"a template that is a path", http.MethodPost, "", object{"template": "../base"}, http.StatusNotFound, "not_found", "does not exist"},
		post("empty template", "", object{"template": ""}, "template"),
		post("malformed JSON", "", `{"template":`, ""),
		post("no object", "", `[]`, ""),
		post("two objects", "", `{} {}`, ""),
		post("unknown field", "", object{"colour": "red"}, "colour"),
		post("wrong type", "", object{"vcpus": "two"}, "vcpus"),
		post("a fraction", "", object{"memory_mb": 512.5}, "memory_mb"),
		post("bad on_timeout", "", object{"on_timeout": "explode"}, "on_timeout"),
		post("negative timeout", "", object{"timeout_sec": -1}, "timeout_sec"),
		post("unknown user", "", object{"user": "nobody-here"}, "nobody-here"),
		post("NUL in the environment", "", object{"env": object{"A": "x\x00y"}}, ""),
		post("a name with = in the environment", "", object{"env": object{"A=B": "x"}}, ""),
	}
	for _, field := range []string{"vcpus", "memory_mb", "disk_size_mb"} {
		for _, value := range []int{0, -1, huge} {
			cases = append(cases, post(field+" out of range", "", object{field: value}, field))
		}
	}
	for _, w := range cases {
		w.check(t, s)
	}
	if err := s.answers(t.Context(), settleLimit); err != nil {
		t.Errorf("the sandbox beside does not answer: %v", err)
	}
	list := p.call(t, http.MethodGet, "/v1/sandboxes?status=starting", nil)
	if string(list.body) != "[]\n" && string(list.body) != "[]" {
		t.Errorf("a refused create left %s", list.body)
	}
}

func TestUnknownSandbox(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	unknown := "/sb" + strings.Repeat("0", 20)
	file := object{"path": "/tmp/x"}
	for _, w := range []wrong{
		{name: "get", method: http.MethodGet, path: unknown},
		{name: "delete", method: http.MethodDelete, path: unknown},
		{name: "odd id", method: http.MethodGet, path: "/..%2f..%2fetc"},
		{name: "ping", method: http.MethodPost, path: unknown + "/ping"},
		{name: "exec", method: http.MethodPost, path: unknown + "/exec", body: object{"cmd": "true"}},
		{name: "background", method: http.MethodPost, path: unknown + "/exec", body: object{"cmd": "true", "background": true}},
		{name: "processes", method: http.MethodGet, path: unknown + "/processes"},
		{name: "signal", method: http.MethodDelete, path: unknown + "/processes/1"},
		{name: "read", method: http.MethodPost, path: unknown + "/files/read", body: file},
		{name: "write", method: http.MethodPost, path: unknown + "/files/write?path=/tmp/x", body: strings.NewReader("x")},
		{name: "list", method: http.MethodPost, path: unknown + "/files/list", body: file},
		{name: "mkdir", method: http.MethodPost, path: unknown + "/files/mkdir", body: file},
		{name: "remove", method: http.MethodPost, path: unknown + "/files/remove", body: file},
		{name: "stat", method: http.MethodPost, path: unknown + "/files/stat", body: file},
		{name: "move", method: http.MethodPost, path: unknown + "/files/move", body: object{"from": "/a", "to": "/b"}},
		{name: "process", method: http.MethodDelete, path: "/{id}/processes/4000000"},
		{name: "tag", method: http.MethodDelete, path: "/{id}/processes/no-such-tag"},
		{name: "file", method: http.MethodPost, path: "/{id}/files/read", body: object{"path": "/no/such/file"}},
		{name: "directory", method: http.MethodPost, path: "/{id}/files/list", body: object{"path": "/no/such"}},
		{name: "stat nothing", method: http.MethodPost, path: "/{id}/files/stat", body: object{"path": "/no/such"}},
		{name: "move nothing", method: http.MethodPost, path: "/{id}/files/move", body: object{"from": "/no/such", "to": "/tmp/x"}},
	} {
		w.status, w.code = http.StatusNotFound, "not_found"
		w.check(t, s)
	}
}

func TestBadExec(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	long := strings.Repeat("n", 300)
	for _, w := range []wrong{
		post("no command", "/{id}/exec", object{}, "cmd"),
		post("empty command", "/{id}/exec", object{"cmd": ""}, "cmd"),
		post("unknown command", "/{id}/exec", object{"cmd": "no-such-command"}, "no-such-command"),
		post("unknown path", "/{id}/exec", object{"cmd": "/no/such/command"}, "/no/such/command"),
		post("unknown command in the background", "/{id}/exec", object{"cmd": "no-such-command", "background": true}, "no-such-command"),
		post("a directory", "/{id}/exec", object{"cmd": "/tmp"}, "/tmp"),
		post("not executable", "/{id}/exec", object{"cmd": "/etc/passwd"}, "/etc/passwd"),
		post("over-long name", "/{id}/exec", object{"cmd": "/tmp/" + long}, ""),
		post("NUL in the command", "/{id}/exec", object{"cmd": "tr\x00ue"}, ""),
		post("NUL in an argument", "/{id}/exec", object{"cmd": "echo", "args": []string{"a\x00b"}}, ""),
		post("missing directory", "/{id}/exec", object{"cmd": "true", "cwd": "/no/such/dir"}, "/no/such/dir"),
		post("a file for a directory", "/{id}/exec", object{"cmd": "true", "cwd": "/etc/passwd"}, "/etc/passwd"),
		post("unknown user", "/{id}/exec", object{"cmd": "true", "user": "nobody-here"}, "nobody-here"),
		post("negative timeout", "/{id}/exec", object{"cmd": "true", "timeout_sec": -1}, "timeout_sec"),
		post("unknown field", "/{id}/exec", object{"cmd": "true", "shell": true}, "shell"),
		post("malformed JSON", "/{id}/exec", `{"cmd":"true"`, ""),
		post("a tag of digits", "/{id}/exec", object{"cmd": "true", "background": true, "tag": "12"}, "tag"),
		{"bad signal", http.MethodDelete, "/{id}/processes/1?signal=SIGWHAT", nil, http.StatusBadRequest, "invalid_request", "signal"},
	} {
		w.check(t, s)
	}
	if err := s.answers(t.Context(), settleLimit); err != nil {
		t.Error(err)
	}
}

func TestBadPaths(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	s.sh(t, "mkdir -p /tmp/dir/sub && echo x >/tmp/file && ln -s /no/such /tmp/dangling")
	long := "/tmp/" + strings.Repeat("n", 300)
	tooLong := strings.Repeat("/abcdefgh", 500)
	nul := "/tmp/a\x00b"
	var cases []wrong
	for _, route := range []string{"read", "list", "mkdir", "remove", "stat"} {
		path := "/{id}/files/" + route
		cases = append(cases,
			post(route+" NUL", path, object{"path": nul}, ""),
			post(route+" too long a path", path, object{"path": tooLong}, ""),
			post(route+" empty path", path, object{"path": ""}, "path"),
			post(route+" no path", path, object{}, "path"),
			post(route+" unknown field", path, object{"path": "/tmp", "x": 1}, "x"),
			post(route+" unknown user", path, object{"path": "/tmp", "user": "nobody-here"}, "nobody-here"),
			post(route+" over-long name", path, object{"path": long}, ""),
		)
	}
	cases = append(cases,
		post("move NUL", "/{id}/files/move", object{"from": "/tmp/file", "to": nul}, ""),
		post("move over-long", "/{id}/files/move", object{"from": "/tmp/file", "to": long}, ""),
		post("write NUL", "/{id}/files/write?path=/tmp/a%00b", strings.NewReader("x"), ""),
		post("write over-long", "/{id}/files/write?path="+long, strings.NewReader("x"), ""),
		post("write no path", "/{id}/files/write", strings.NewReader("x"), "path"),
		post("read a directory", "/{id}/files/read", object{"path": "/tmp/dir"}, ""),
		post("list a file", "/{id}/files/list", object{"path": "/tmp/file"}, ""),
		post("write to a directory", "/{id}/files/write?path=/tmp/dir", strings.NewReader("x"), ""),
		post("below a file", "/{id}/files/write?path=/tmp/file/below", strings.NewReader("x"), ""),
		wrong{"mkdir again", http.MethodPost, "/{id}/files/mkdir", object{"path": "/tmp/dir"}, http.StatusConflict, "conflict", "/tmp/dir"},
		post("remove everything", "/{id}/files/remove", object{"path": "/"}, ""),
	)
	for _, w := range cases {
		w.check(t, s)
	}
	if got := s.sh(t, "cat /tmp/file; ls -a /tmp/dir"); got != "x\n.\n..\nsub" {
		t.Errorf("the files are now %q", got)
	}
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	p := theProgram(t)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/v1/nothing", http.StatusNotFound},
		{http.MethodGet, "/v1/sandboxes/x/nothing", http.StatusNotFound},
		{http.MethodPatch, "/v1/sandboxes", http.StatusMethodNotAllowed},
		{http.MethodGet, "/v1/sandboxes?limit=0", http.StatusBadRequest},
		{http.MethodGet, "/v1/sandboxes?cursor=nonsense", http.StatusBadRequest},
		{http.MethodGet, "/v1/sandboxes?status=asleep", http.StatusBadRequest},
	} {
		a := p.call(t, tt.method, tt.path, nil)
		if a.fault(t); a.status != tt.status {
			t.Errorf("%s %s answered %d: %s", tt.method, tt.path, a.status, a.body)
		}
	}
}

// Accounts that cannot be read keep out everybody but root, who can mend them.
func TestAccountsThatCannotBeRead(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	root := func(script string) string {
		t.Helper()
		r := s.exec(t, object{"cmd": "sh", "args": []string{"-c", script}, "user": "root"})
		if r.code != 0 {
			t.Fatalf("%s ended with %d: %s", script, r.code, r.stderr)
		}
		return r.stdout
	}
	root("mv /etc/passwd /etc/kept && mkfifo /etc/passwd")
	wrong{"the default user", http.MethodPost, "/{id}/exec", object{"cmd": "true"},
		http.StatusBadGateway, "agent_error", "as root, make '/etc/passwd'"}.check(t, s)
	if out := root("id -u; echo $HOME; pwd; rm /etc/passwd"); out != "0\n/root\n/root\n" {
		t.Errorf("root is %q", out)
	}
	root("mv /etc/kept /etc/passwd")
	if who := s.sh(t, "whoami"); who != "wrenn-user" {
		t.Errorf("mended, the default user is %q", who)
	}
}
