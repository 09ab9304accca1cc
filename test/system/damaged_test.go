package system_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A paused sandbox whose state on the disk was changed, or cut short, is not resumed from
// it: it stays paused, and the error says what is wrong. Repaired, it goes on.
func TestDamagedState(t *testing.T) {
	p := ownProgram(t, t.TempDir(), "--snapshot-max-count", "1")
	s := newSandbox(t, p, nil)
	s.counts(t)
	n := s.count(t)
	s.do(t, "/pause", nil, http.StatusOK)
	// The manifest beside them has been read already.
	files := globs(p.dataDir + "/snapshots/*/state/*")
	if len(files) == 0 {
		t.Fatal("nothing is in the snapshot")
	}
	for what, damage := range map[string]func(whole []byte) []byte{
		"one byte is another": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"the end is missing":  func(b []byte) []byte { return b[:len(b)-1] },
	} {
		for _, file := range files {
			info, err := os.Lstat(file)
			if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
				t.Fatalf("%s is %v, %v", file, info, err)
			}
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			write := func(content []byte) {
				if err := os.WriteFile(file, content, info.Mode().Perm()); err != nil {
					t.Fatal(err)
				}
			}
			write(damage(append([]byte{}, whole...)))
			a := p.call(t, http.MethodPost, s.path("/resume"), nil)
			name := filepath.Base(file)
			if _, message := a.fault(t); a.status < http.StatusBadRequest || !strings.Contains(message, "damaged") {
				t.Errorf("%s, %s: resume answered %d: %s", name, what, a.status, a.body)
			}
			if status, reason := s.status(t); status != "paused" {
				t.Errorf("%s, %s: it is %s (%s)", name, what, status, reason)
			}
			write(whole)
		}
	}
	s.do(t, "/resume", nil, http.StatusOK)
	s.goesOn(t, n)
	s.snapshotRots(t)
}

// snapshotRots makes a snapshot, damages it, and looks that it is shown as that; and that it
// goes when there is a newer one, of which its server, p, keeps one.
func (s *sandbox) snapshotRots(t *testing.T) {
	t.Helper()
	p := s.p
	if a := p.call(t, http.MethodPost, "/v1/snapshots", object{"sandbox_id": s.id, "name": "rotten"}); a.status != http.StatusCreated {
		t.Fatalf("snapshot: %d %s", a.status, a.body)
	}
	memory := globs(p.dataDir + "/snapshots/sn*/state/pages.img")
	if len(memory) != 1 {
		t.Fatalf("the snapshot is %v", memory)
	}
	if err := os.Truncate(memory[0], 1); err != nil {
		t.Fatal(err)
	}
	for range 2 { // once found, it is known
		a := p.call(t, http.MethodPost, "/v1/sandboxes", object{"template": "rotten"})
		if _, message := a.fault(t); a.status != http.StatusInternalServerError || !strings.Contains(message, "damaged") {
			t.Errorf("create answered %d: %s", a.status, a.body)
		}
	}
	if a := p.call(t, http.MethodGet, "/v1/snapshots", nil); !strings.Contains(string(a.body), `"damaged":true`) {
		t.Errorf("the list does not say it: %s", a.body)
	}
	if a := p.call(t, http.MethodPost, "/v1/snapshots", object{"sandbox_id": s.id, "name": "fresh"}); a.status != http.StatusCreated {
		t.Fatalf("snapshot: %d %s", a.status, a.body)
	}
	eventually(t, settleLimit, func() error {
		if a := p.call(t, http.MethodGet, "/v1/snapshots", nil); strings.Contains(string(a.body), "rotten") || !strings.Contains(string(a.body), "fresh") {
			return fmt.Errorf("there are %s", a.body)
		}
		return nil
	})
}
