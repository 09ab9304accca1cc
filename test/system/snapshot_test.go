package system_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// made takes over a sandbox that the API made in another way than by a create.
func (p *program) made(t testing.TB, info object) *sandbox {
	t.Helper()
	s := &sandbox{p: p, info: info}
	s.id, _ = info["id"].(string)
	p.seen.look()
	t.Cleanup(func() {
		select {
		case <-p.exited:
		default:
			ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
			defer cancel()
			if a, err := p.try(ctx, http.MethodDelete, s.path(""), nil); err != nil || a.status != http.StatusNoContent && a.status != http.StatusNotFound {
				t.Errorf("delete answered %d (%v): %s", a.status, err, a.body)
			}
		}
	})
	return s
}

// differs checks that a copy has an identity of its own, and all else of its source.
func (s *sandbox) differs(t testing.TB, source *sandbox, n int) {
	t.Helper()
	s.goesOn(t, n)
	const who = "cat /run/wrenn/.* /etc/machine-id /run/wrenn/* 2>/dev/null | sort -u; uname -n; ip -4 -o addr 2>/dev/null | grep -v 127.0.0.1 || true"
	if a, b := s.sh(t, who), source.sh(t, who); a == b {
		t.Errorf("a copy is the same as its source: %s", a)
	}
	for what, script := range map[string]string{"host name": "uname -n", "machine id": "cat /etc/machine-id"} {
		if a, b := s.sh(t, script), source.sh(t, script); a == b {
			t.Errorf("%s of both is %q", what, a)
		}
	}
	if name := s.sh(t, "uname -n"); name != s.id {
		t.Errorf("the host name is %q", name)
	}
	s.sh(t, "cd && sha256sum -c sum")
}

func TestSnapshots(t *testing.T) {
	p := ownProgram(t, t.TempDir())
	s := newSandbox(t, p, object{"memory_mb": 640, "env": object{"OF": "source", "BOTH": "1"}, "metadata": object{"a": "b"}})
	s.counts(t)
	s.sh(t, "head -c 3000000 /dev/urandom > blob; sha256sum blob > sum")
	n := s.count(t)
	post := func(path string, body object) answer { return p.call(t, http.MethodPost, path, body) }

	a := post("/v1/snapshots", object{"sandbox_id": s.id, "name": "web"})
	snap := a.object(t)
	if a.status != http.StatusCreated || snap["name"] != "web" || snap["type"] != "snapshot" || snap["memory_mb"] != 640.0 || snap["size_bytes"].(float64) < mib || snap["stopped_us"].(float64) < 1 {
		t.Fatalf("snapshot: %d %s", a.status, a.body)
	}
	if a := post("/v1/snapshots", object{"sandbox_id": s.id, "name": "web"}); a.status != http.StatusConflict {
		t.Errorf("a name that is taken: %d %s", a.status, a.body)
	}
	for _, name := range []string{"base", s.id, "Web"} {
		if a := post("/v1/snapshots", object{"sandbox_id": s.id, "name": name}); a.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	made := newSandbox(t, p, object{"template": "web", "env": object{"OF": "copy"}})
	if made.info["memory_mb"] != 640.0 || made.info["template"] != "web" {
		t.Errorf("made from it: %v", made.info)
	}
	made.differs(t, s, n)
	if env := made.sh(t, "echo $OF-$BOTH"); env != "copy-1" {
		t.Errorf("its environment is %s", env)
	}
	a = post("/v1/sandboxes", object{"template": "web", "memory_mb": 512})
	if _, message := a.fault(t); a.status != http.StatusBadRequest || !strings.Contains(message, "640") {
		t.Errorf("of another size: %d %s", a.status, a.body)
	}
	if a := post("/v1/sandboxes", object{"template": "wrong"}); a.status < 400 || a.status >= 500 {
		t.Errorf("an unknown template: %d %s", a.status, a.body)
	}

	s.sh(t, "echo newer > newer")
	if a := post("/v1/snapshots?overwrite=true", object{"sandbox_id": s.id, "name": "web"}); a.status != http.StatusCreated {
		t.Fatalf("overwrite: %d %s", a.status, a.body)
	}
	newSandbox(t, p, object{"template": "web"}).sh(t, "cat newer")
	var list []object
	if err := json.Unmarshal(p.call(t, http.MethodGet, "/v1/snapshots", nil).body, &list); err != nil || len(list) != 1 || list[0]["id"] == snap["id"] {
		t.Errorf("%v, %v", list, err)
	}
	if a := p.call(t, http.MethodDelete, "/v1/snapshots/web", nil); a.status != http.StatusNoContent {
		t.Errorf("delete answered %d: %s", a.status, a.body)
	}
	// What was made from it does not need it.
	made.goesOn(t, n)
	if left := globs(p.dataDir + "/snapshots/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestFork(t *testing.T) {
	p := ownProgram(t, t.TempDir())
	s := newSandbox(t, p, object{"timeout_sec": 3600, "metadata": object{"a": "b"}})
	s.counts(t)
	s.sh(t, "head -c 3000000 /dev/urandom > blob; sha256sum blob > sum")
	n := s.count(t)
	const copies = 3
	a := s.do(t, "/fork", object{"count": copies, "timeout_sec": 600}, http.StatusCreated)
	var all []object
	if err := json.Unmarshal(a.body, &all); err != nil || len(all) != copies {
		t.Fatalf("%s", a.body)
	}
	names, entropy := map[string]bool{}, map[string]bool{}
	for _, info := range all {
		c := p.made(t, info)
		// The first bits that each is asked for: a generator that was copied gives all the same.
		entropy[c.sh(t, "head -c 16 /dev/urandom | base64")] = true
		if info["status"] != "running" || info["timeout_sec"] != 600.0 || info["metadata"].(map[string]any)["a"] != "b" {
			t.Errorf("a copy: %v", info)
		}
		c.differs(t, s, n)
		c.sh(t, "echo mine > mine")
		names[c.sh(t, "cat /etc/machine-id")] = true
	}
	if len(names) != copies {
		t.Errorf("machine ids: %v", names)
	}
	if len(entropy) != copies {
		t.Errorf("random bits: %v", entropy)
	}
	s.sh(t, "test ! -e mine")
	s.goesOn(t, n)
	if left := globs(p.dataDir + "/snapshots/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, body := range []object{{"count": 0}, {"count": 101}} {
		if a := p.call(t, http.MethodPost, s.path("/fork"), body); a.status != http.StatusBadRequest {
			t.Errorf("%v: %d %s", body, a.status, a.body)
		}
	}
}

// A snapshot that is kept warm is a sandbox at once, and as much one of its own as any.
func TestWarm(t *testing.T) {
	p := ownProgram(t, t.TempDir(), "--warm", "web=2")
	s := newSandbox(t, p, nil)
	s.counts(t)
	s.sh(t, "head -c 3000000 /dev/urandom > blob; sha256sum blob > sum")
	n := s.count(t)
	if a := p.call(t, http.MethodPost, "/v1/snapshots", object{"sandbox_id": s.id, "name": "web"}); a.status != http.StatusCreated {
		t.Fatalf("snapshot: %d %s", a.status, a.body)
	}
	running := func() int { return len(p.seen.find(cgroups)) }
	one := running()
	for range 3 {
		eventually(t, settleLimit, func() error {
			if running() < one+2 {
				return errStill("two are not ready yet")
			}
			return nil
		})
		var listed []object
		if err := json.Unmarshal(p.call(t, http.MethodGet, "/v1/sandboxes", nil).body, &listed); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		made := newSandbox(t, p, object{"template": "web", "env": object{"OF": "copy"}})
		t.Logf("a warm create took %v", time.Since(began))
		made.differs(t, s, n)
		if env := made.sh(t, "echo $OF"); env != "copy" {
			t.Errorf("its environment has %q", env)
		}
		one++
		var after []object
		if err := json.Unmarshal(p.call(t, http.MethodGet, "/v1/sandboxes", nil).body, &after); err != nil || len(after) != len(listed)+1 {
			t.Errorf("%d were listed, and then %d: %v", len(listed), len(after), err)
		}
	}
}
