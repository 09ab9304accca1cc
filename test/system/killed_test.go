package system_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// A kill -9 at some moment of a pause, a resume, a fork or a snapshot: after the restart the
// sandbox runs or is paused, what it had in its memory and on its disk is there, and of what
// was half done nothing is left.
func TestKilledInTheMiddle(t *testing.T) {
	for name, op := range map[string]struct {
		before func(t *testing.T, s *sandbox)
		path   func(s *sandbox) string
		body   func(s *sandbox) object
	}{
		"pause": {nil, func(s *sandbox) string { return s.path("/pause") }, nil},
		"resume": {func(t *testing.T, s *sandbox) { s.do(t, "/pause", nil, http.StatusOK) },
			func(s *sandbox) string { return s.path("/resume") }, nil},
		"fork":     {nil, func(s *sandbox) string { return s.path("/fork") }, func(*sandbox) object { return object{"count": 2} }},
		"snapshot": {nil, func(*sandbox) string { return "/v1/snapshots" }, func(s *sandbox) object { return object{"sandbox_id": s.id} }},
	} {
		for _, after := range []time.Duration{5 * time.Millisecond, 40 * time.Millisecond, 110 * time.Millisecond, 250 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s after %v", name, after), func(t *testing.T) {
				dir := t.TempDir()
				p := ownProgram(t, dir, "--on-stop", "keep")
				s := newSandbox(t, p, nil)
				s.counts(t)
				s.sh(t, "head -c 3000000 /dev/urandom > blob; sha256sum blob > sum")
				n := s.count(t)
				if op.before != nil {
					op.before(t, s)
				}
				var body any
				if op.body != nil {
					body = op.body(s)
				}
				answered := make(chan int, 1)
				go func() {
					a, _ := p.try(t.Context(), http.MethodPost, op.path(s), body)
					answered <- a.status
				}()
				<-time.After(after) // the moment that this case is about
				p.kill()
				t.Logf("it answered %d before its end", <-answered)

				again := ownProgram(t, dir, "--on-stop", "keep")
				s.p = again
				again.seen.indexes = p.seen.indexes
				s.recovers(t, n)
				again.deletesAll(t)
				requireClean(t, again.seen, ofSandboxes)
				if left := globs(again.dataDir+"/snapshots/*", again.dataDir+"/snapshots/.*"); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			})
		}
	}
}

// recovers waits until a sandbox that was in passage runs or is paused, and checks that it
// is whole.
func (s *sandbox) recovers(t *testing.T, n int) {
	t.Helper()
	var status, reason string
	eventually(t, settleLimit, func() error {
		if status, reason = s.status(t); status != "running" && status != "paused" {
			return fmt.Errorf("it is %s (%s)", status, reason)
		}
		return nil
	})
	if status == "paused" {
		s.do(t, "/resume", nil, http.StatusOK)
	}
	s.goesOn(t, n)
	s.sh(t, "sha256sum -c sum")
}

// deletesAll waits until nothing is in passage, and deletes all that is listed.
func (p *program) deletesAll(t *testing.T) {
	t.Helper()
	list := func(path string) (found []struct{ ID, Name, Status string }) {
		if err := json.Unmarshal(p.call(t, http.MethodGet, path, nil).body, &found); err != nil {
			t.Fatal(err)
		}
		return found
	}
	eventually(t, settleLimit, func() error {
		var others []error
		for _, s := range list("/v1/sandboxes") {
			if s.Status != "running" && s.Status != "paused" {
				others = append(others, fmt.Errorf("%s is %s", s.ID, s.Status))
			}
		}
		return errors.Join(others...)
	})
	for _, s := range list("/v1/sandboxes") {
		if a := p.call(t, http.MethodDelete, "/v1/sandboxes/"+s.ID, nil); a.status != http.StatusNoContent {
			t.Errorf("delete answered %d: %s", a.status, a.body)
		}
	}
	for _, s := range list("/v1/snapshots") {
		if a := p.call(t, http.MethodDelete, "/v1/snapshots/"+s.Name, nil); a.status != http.StatusNoContent {
			t.Errorf("delete answered %d: %s", a.status, a.body)
		}
	}
}
