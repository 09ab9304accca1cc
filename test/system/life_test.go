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

// ownProgram is a program that the test may end as it likes. No sandbox survives the test.
func ownProgram(t *testing.T, dir string, flags ...string) *program {
	t.Helper()
	p, err := launch(t, dir, flags...)
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
		if len(p.seen.traces([]kind{processes})) == 0 {
			return
		}
		again, err := launch(t, dir)
		if err == nil {
			err = again.stop()
		}
		if err != nil {
			t.Errorf("ending the sandboxes that the program left: %v", err)
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

// A kill -9 in the middle of creating ten sandboxes, at several points of it: after a
// restart those that were answered live on, and of the others nothing is left.
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
	requireAlive(t, again, created)
	requireClean(t, again.seen, ofSandboxes)
	if err := newSandbox(t, again, nil).answers(t.Context(), settleLimit); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if err := again.stop(); err != nil {
		t.Errorf("%v; its log:\n%s", err, again.log())
	}
	requireClean(t, again.seen, everything)
	requireOnlyKnownFiles(t, again.dataDir)
}

// requireAlive checks that the sandboxes that were answered run, and that whatever else is
// listed does too, and deletes them.
func requireAlive(t *testing.T, p *program, ids []string) {
	t.Helper()
	var list []string
	eventually(t, settleLimit, func() error {
		var now []struct{ ID, Status, Reason string }
		if err := json.Unmarshal(p.call(t, http.MethodGet, "/v1/sandboxes", nil).body, &now); err != nil {
			return err
		}
		list = nil
		var others []error
		for _, s := range now {
			list = append(list, s.ID)
			if s.Status != "running" {
				others = append(others, fmt.Errorf("%s is %s (%s)", s.ID, s.Status, s.Reason))
			}
		}
		return errors.Join(others...)
	})
	for _, id := range ids {
		if !slices.Contains(list, id) {
			t.Errorf("sandbox %s, which was answered, is gone", id)
		}
	}
	for _, id := range list {
		s := &sandbox{p: p, id: id}
		if err := s.answers(t.Context(), settleLimit); err != nil {
			t.Errorf("after the restart: %v", err)
		}
		if a := p.call(t, http.MethodDelete, s.path(""), nil); a.status != http.StatusNoContent {
			t.Errorf("delete answered %d: %s", a.status, a.body)
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
