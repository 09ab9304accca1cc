package system_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownProgram is a program that the test may end as it likes.
func ownProgram(t *testing.T, dir string) *program {
	t.Helper()
	p, err := launch(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-p.exited:
		default:
			if err := p.stop(); err != nil {
				t.Errorf("stop: %v; its log:\n%s", err, p.log())
			}
		}
	})
	return p
}

func TestCleanStop(t *testing.T) {
	p := ownProgram(t, t.TempDir())
	const count = 3
	for range count {
		if a := p.call(t, http.MethodPost, "/v1/sandboxes", object{}); a.status != http.StatusCreated {
			t.Fatalf("create answered %d: %s", a.status, a.body)
		}
	}
	requireTraces(t, p.seen)
	if err := p.stop(); err != nil {
		t.Errorf("SIGTERM ended it with %v; its log:\n%s", err, p.log())
	}
	requireClean(t, p.seen, everything)
	requireOnlyKnownFiles(t, p.dataDir)
}

// A second start over the same directory is quick, and knows the same key.
func TestSecondStart(t *testing.T) {
	dir := t.TempDir()
	first := ownProgram(t, dir)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	const limit = 5 * time.Second
	began := time.Now()
	second := ownProgram(t, dir)
	if took := time.Since(began); took > limit {
		t.Errorf("the second start took %v", took)
	}
	second.key = first.key
	if a := second.call(t, http.MethodGet, "/v1/sandboxes", nil); a.status != http.StatusOK {
		t.Errorf("with the first start's key: %d %s", a.status, a.body)
	}
}

func TestDataDirectoryInUse(t *testing.T) {
	p := theProgram(t)
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, p.bin, "up", "--listen", "127.0.0.1:0", "--data-dir", p.dataDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in use") {
		t.Errorf("a second program over the same data: %v: %s", err, out)
	}
	if err := newSandbox(t, p, nil).answers(t.Context(), settleLimit); err != nil {
		t.Error(err)
	}
}

// A kill -9 in the middle of creating ten sandboxes, at several points of it: a restart
// leaves nothing of them.
func TestKilledWhileCreating(t *testing.T) {
	for name, moment := range map[string]func(p *program, done int) bool{
		"at the first lease":   func(p *program, _ int) bool { return len(p.seen.find(leases)) > 0 },
		"at the first process": func(p *program, _ int) bool { return len(p.seen.find(processes)) > 0 },
		"at the first sandbox": func(_ *program, done int) bool { return done > 0 },
		"after the fifth":      func(_ *program, done int) bool { return done > 4 },
	} {
		t.Run(name, func(t *testing.T) { killWhileCreating(t, moment) })
	}
}

func killWhileCreating(t *testing.T, moment func(p *program, done int) bool) {
	t.Helper()
	dir := t.TempDir()
	p := ownProgram(t, dir)
	const count = 10
	var mu sync.Mutex
	var created []string
	var creates sync.WaitGroup
	for range count {
		creates.Go(func() {
			a, err := p.try(t.Context(), http.MethodPost, "/v1/sandboxes", object{})
			if err == nil && a.status == http.StatusCreated {
				mu.Lock()
				defer mu.Unlock()
				created = append(created, a.object(t)["id"].(string))
			}
		})
	}
	eventually(t, settleLimit, func() error {
		p.seen.look()
		mu.Lock()
		defer mu.Unlock()
		if !moment(p, len(created)) {
			return errStill("too early to kill it")
		}
		return nil
	})
	p.kill()
	creates.Wait()
	p.seen.look()
	if len(p.seen.traces(ofSandboxes)) == 0 {
		t.Fatal("the kill left nothing, so there is nothing for the restart to remove: it came at a wrong time")
	}
	t.Logf("killed with %d of %d created", len(created), count)

	again := ownProgram(t, dir)
	again.seen.indexes = p.seen.indexes
	requireClean(t, again.seen, ofSandboxes)
	requireNoneAlive(t, again, created)
	if err := newSandbox(t, again, nil).answers(t.Context(), settleLimit); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if err := again.stop(); err != nil {
		t.Errorf("%v; its log:\n%s", err, again.log())
	}
	requireClean(t, again.seen, everything)
	requireOnlyKnownFiles(t, again.dataDir)
}

// requireNoneAlive checks that sandboxes that died with the program are shown as such,
// answer so, and can be deleted.
func requireNoneAlive(t *testing.T, p *program, ids []string) {
	t.Helper()
	final := []string{"stopped", "error", "missing"}
	eventually(t, settleLimit, func() error {
		var list []struct{ ID, Status, Reason string }
		if err := json.Unmarshal(p.call(t, http.MethodGet, "/v1/sandboxes", nil).body, &list); err != nil {
			return err
		}
		var alive []error
		for _, s := range list {
			if !slices.Contains(final, s.Status) {
				alive = append(alive, fmt.Errorf("%s is %s", s.ID, s.Status))
			} else if s.Reason == "" {
				alive = append(alive, fmt.Errorf("%s is %s without a reason", s.ID, s.Status))
			}
		}
		return errors.Join(alive...)
	})
	for _, id := range ids {
		s := &sandbox{p: p, id: id}
		a := p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "true"})
		if code, _ := a.fault(t); a.status != http.StatusConflict || code != "invalid_state" {
			t.Errorf("exec in a lost sandbox answered %d: %s", a.status, a.body)
		}
		if a := p.call(t, http.MethodDelete, s.path(""), nil); a.status != http.StatusNoContent {
			t.Errorf("deleting a lost sandbox answered %d: %s", a.status, a.body)
		}
	}
}

// A sandbox whose runtime is killed under it is noticed.
func TestKilledRuntime(t *testing.T) {
	p := ownProgram(t, t.TempDir())
	s := newSandbox(t, p, nil)
	var killed int
	for _, process := range p.seen.find(processes) {
		var pid int
		if _, err := fmt.Sscan(process, &pid); err == nil && unix.Kill(pid, unix.SIGKILL) == nil {
			killed++
		}
	}
	if killed == 0 {
		t.Fatal("no process of the sandbox was found")
	}
	eventually(t, settleLimit, func() error {
		if status, reason := s.status(t); status == "running" || reason == "" {
			return fmt.Errorf("it is %s %q", status, reason)
		}
		return nil
	})
	// What it held goes at once; that it was there stays known until it is deleted.
	held := slices.DeleteFunc(slices.Clone(ofSandboxes), func(k kind) bool { return k == records })
	requireClean(t, p.seen, held)
	if a := p.call(t, http.MethodDelete, s.path(""), nil); a.status != http.StatusNoContent {
		t.Errorf("delete answered %d: %s", a.status, a.body)
	}
	requireClean(t, p.seen, ofSandboxes)
}
