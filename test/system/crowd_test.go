package system_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// memoryInUse is what the sandbox's cgroup counts, in bytes.
func (s *sandbox) memoryInUse(t testing.TB) int64 {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/memory/%s/memory.usage_in_bytes", "/sys/fs/cgroup/%s/memory.current"} {
		path := fmt.Sprintf(pattern, filepath.Join("wrenn-"+s.p.seen.instance, s.id))
		if text, err := os.ReadFile(path); err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("sandbox %s has no memory cgroup", s.id)
	return 0
}

func TestFiftySandboxes(t *testing.T) {
	p := theProgram(t)
	const count, atOnce = 50, 8
	const idleMemory = 30 * mib
	all := make([]*sandbox, count)
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(atOnce)
	for i := range all {
		group.Go(func() error {
			a, err := p.try(ctx, http.MethodPost, "/v1/sandboxes", object{"metadata": object{"crowd": strconv.Itoa(i)}})
			if err != nil || a.status != http.StatusCreated {
				return fmt.Errorf("create %d answered %d: %s, %w", i, a.status, a.body, err)
			}
			id, _ := a.object(t)["id"].(string)
			all[i] = &sandbox{p: p, id: id}
			r, err := all[i].tryExec(ctx, object{"cmd": "sh", "args": []string{"-c", "hostname"}})
			if err != nil || r.stdout != id+"\n" {
				return fmt.Errorf("sandbox %d says %q, %w", i, r.stdout, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	p.seen.look()
	var sum int64
	for _, s := range all {
		if s != nil && !t.Failed() {
			sum += s.memoryInUse(t)
		}
	}
	t.Logf("%.1f MiB for each idle sandbox", float64(sum)/count/mib)
	if sum/count > idleMemory {
		t.Errorf("an idle sandbox holds %d MiB", sum/count/mib)
	}
	removal, ctx := errgroup.WithContext(context.WithoutCancel(t.Context()))
	removal.SetLimit(atOnce)
	for _, s := range all {
		if s == nil {
			continue
		}
		removal.Go(func() error {
			a, err := p.try(ctx, http.MethodDelete, s.path(""), nil)
			if err != nil || a.status != http.StatusNoContent {
				return fmt.Errorf("delete answered %d: %s, %w", a.status, a.body, err)
			}
			return nil
		})
	}
	if err := removal.Wait(); err != nil {
		t.Error(err)
	}
	requireClean(t, p.seen, ofSandboxes)
}
