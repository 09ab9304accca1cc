package system_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestOperations(t *testing.T) {
	p := theProgram(t)
	for path, contains := range map[string]string{
		"/healthz":      `"ok"`,
		"/readyz":       `"ok"`,
		"/openapi.yaml": "openapi: 3",
		"/docs":         "<html",
	} {
		resp, err := http.Get(p.url + path) // without a key
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		a := p.call(t, http.MethodGet, path, nil)
		if resp.StatusCode != http.StatusOK || !strings.Contains(strings.ToLower(string(a.body)), contains) {
			t.Errorf("GET %s answered %d: %.200q", path, resp.StatusCode, a.body)
		}
	}
}

func TestKeys(t *testing.T) {
	p := theProgram(t)
	secret := strings.TrimPrefix(p.key, "wrn_")
	const hexDigits = 40
	if len(secret) != hexDigits || secret == p.key {
		t.Fatalf("the key has not the documented form")
	}
	for name, tt := range map[string]struct {
		header, value string
		want          int
	}{
		"the key":             {"X-API-Key", p.key, http.StatusOK},
		"the e2b_ prefix":     {"X-API-Key", "e2b_" + secret, http.StatusOK},
		"as bearer":           {"Authorization", "Bearer " + p.key, http.StatusOK},
		"none":                {"X-Other", "x", http.StatusUnauthorized},
		"empty":               {"X-API-Key", "", http.StatusUnauthorized},
		"another":             {"X-API-Key", "wrn_" + strings.Repeat("0", hexDigits), http.StatusUnauthorized},
		"without a prefix":    {"X-API-Key", secret, http.StatusUnauthorized},
		"another kind":        {"Authorization", "Basic " + p.key, http.StatusUnauthorized},
		"with something more": {"X-API-Key", p.key + "0", http.StatusUnauthorized},
	} {
		req, err := p.request(t.Context(), http.MethodGet, "/v1/sandboxes", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Del("X-API-Key")
		req.Header.Set(tt.header, tt.value)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, tt.want)
		}
	}
}

func TestLife(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, object{"metadata": object{"project": "life"}, "env": object{"GREETING": "hello"}, "vcpus": 2, "memory_mb": 256})
	for field, want := range map[string]any{
		"status": "running", "template": "base", "vcpus": 2.0, "memory_mb": 256.0, "runtime": "gvisor", "timeout_sec": 0.0, "on_timeout": "pause",
	} {
		if s.info[field] != want {
			t.Errorf("%s is %v, want %v", field, s.info[field], want)
		}
	}
	if !strings.HasPrefix(s.id, "sb") || len(s.id) != len("sb")+20 || strings.Trim(s.id, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		t.Errorf("the id is %q", s.id)
	}
	if got := s.sh(t, `echo "$GREETING $(id -un) $PWD $(hostname)"`); got != "hello wrenn-user /home/wrenn-user "+s.id {
		t.Errorf("the sandbox says %q", got)
	}
	if got := s.sh(t, "sudo -n id -un; sudo -n -u user id -un; getent hosts $(hostname) >/dev/null && echo known"); got != "root\nuser\nknown" {
		t.Errorf("sudo says %q", got)
	}
	for _, prefix := range []string{"/v1/sandboxes", "/v1/capsules"} {
		one := p.call(t, http.MethodGet, prefix+"/"+s.id, nil)
		if one.status != http.StatusOK || one.object(t)["id"] != s.id {
			t.Errorf("GET under %s answered %d: %s", prefix, one.status, one.body)
		}
		list := p.call(t, http.MethodGet, prefix+"?metadata.project=life&status=running", nil)
		var found []object
		if err := json.Unmarshal(list.body, &found); err != nil || len(found) != 1 || found[0]["id"] != s.id {
			t.Errorf("the list under %s is %s", prefix, list.body)
		}
	}
	if a := p.call(t, http.MethodPost, s.path("/ping"), nil); a.status != http.StatusNoContent {
		t.Errorf("ping answered %d: %s", a.status, a.body)
	}
	requireTraces(t, p.seen)
	if a := p.call(t, http.MethodDelete, "/v1/capsules/"+s.id, nil); a.status != http.StatusNoContent {
		t.Errorf("delete answered %d: %s", a.status, a.body)
	}
	if a := p.call(t, http.MethodGet, s.path(""), nil); a.status != http.StatusNotFound {
		t.Errorf("a deleted sandbox answered %d: %s", a.status, a.body)
	}
}

func TestBackgroundProcesses(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	a := s.p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "sleep", "args": []string{"1000"}, "background": true, "tag": "nap"})
	if a.status != http.StatusAccepted || a.object(t)["tag"] != "nap" {
		t.Fatalf("a background exec answered %d: %s", a.status, a.body)
	}
	pid := a.object(t)["pid"]
	tags := func() []string {
		var list struct {
			Processes []struct {
				Pid  any
				Tag  string
				Cmd  string
				Args []string
			}
		}
		if err := json.Unmarshal(s.p.call(t, http.MethodGet, s.path("/processes"), nil).body, &list); err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, process := range list.Processes {
			if process.Tag == "nap" && (process.Pid != pid || process.Cmd != "sleep" || !slices.Equal(process.Args, []string{"1000"})) {
				t.Errorf("the process is %+v, and was started as %v", process, pid)
			}
			found = append(found, process.Tag)
		}
		return found
	}
	if got := tags(); !slices.Contains(got, "nap") {
		t.Fatalf("the processes are %v", got)
	}
	if a := s.p.call(t, http.MethodDelete, s.path("/processes/nap?signal=SIGTERM"), nil); a.status != http.StatusNoContent {
		t.Fatalf("the signal answered %d: %s", a.status, a.body)
	}
	eventually(t, settleLimit, func() error {
		if slices.Contains(tags(), "nap") {
			return errStill("the process runs")
		}
		return nil
	})
	if a := s.p.call(t, http.MethodDelete, s.path("/processes/nap"), nil); a.status != http.StatusNotFound {
		t.Errorf("a signal to no process answered %d: %s", a.status, a.body)
	}
}

// errStill is a condition that does not hold yet.
type errStill string

func (e errStill) Error() string { return string(e) }
