package system_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A paused sandbox whose state on the disk was changed, or cut short, is not resumed from
// it: it stays paused, and the error says what is wrong. Repaired, it goes on.
func TestDamagedState(t *testing.T) {
	p := ownProgram(t, t.TempDir())
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
}
