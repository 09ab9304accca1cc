package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/control/account"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func open(t *testing.T) (*DB, string) {
	t.Helper()
	// A path with everything that means something in a URI.
	path := filepath.Join(t.TempDir(), "a b?c%20#d&e=f.db")
	db, err := Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db, path
}

var t0 = time.Date(2026, 5, 4, 3, 2, 1, 123456000, time.UTC)

func sample(id string, at time.Time) sandbox.Sandbox {
	return sandbox.Sandbox{
		ID: id, Status: sandbox.Starting, Template: "base",
		Resources: sandbox.Resources{VCPUs: 2, MemoryMB: 1024, DiskMB: 4096},
		Timeout:   time.Minute, Deadline: time.Hour, OnTimeout: sandbox.Kill,
		Runtime: "gvisor", HostID: "h1", Metadata: map[string]string{`k"'.$`: "v1", "n": "1"},
		Web:       sandbox.Web{TrafficToken: "secret", AutoResume: true, MaskHost: "localhost:${PORT}"},
		CreatedAt: at, UpdatedAt: at,
	}
}

func TestSandboxRoundTrip(t *testing.T) {
	db, path := open(t)
	st, ctx := db.Sandboxes(), t.Context()
	want := sample("sb1", t0)
	if err := st.Insert(ctx, want); err != nil {
		t.Fatal(err)
	}
	if err := st.Insert(ctx, want); err == nil {
		t.Fatal("the same id was inserted twice")
	}
	got, err := st.Get(ctx, "sb1")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("read back: %v %s", err, diff)
	}

	want.Status, want.HostIP, want.GuestIP = sandbox.Running, "10.0.0.1", "10.0.0.2"
	want.StartedAt, want.LastActiveAt, want.UpdatedAt = t0.Add(time.Second), t0.Add(2*time.Second), t0.Add(3*time.Second)
	if ok, err := st.Save(ctx, want, sandbox.Running); ok || err != nil {
		t.Fatalf("Save from another status: %v %v", ok, err)
	}
	if ok, err := st.Save(ctx, want, sandbox.Starting); !ok || err != nil {
		t.Fatalf("Save: %v %v", ok, err)
	}
	// Another connection, after the first is closed, as after a restart.
	again, err := Open(ctx, "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	got, err = again.Sandboxes().Get(ctx, "sb1")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("after Save: %v %s", err, diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the database's mode: %v %v", info.Mode(), err)
	}
}

func TestOpenOfADamagedDatabaseSaysWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wrenn.db")
	db, err := Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const header = 100 // bytes; what follows is the first table's pages
	for name, content := range map[string][]byte{
		"no database": bytes.Repeat([]byte("not a database\n"), 100),
		"broken":      append(whole[:header:header], bytes.Repeat([]byte{0xff}, len(whole)-header)...),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), "sqlite:"+path)
		if err == nil || !strings.Contains(err.Error(), "move it away") || !strings.Contains(err.Error(), path+"-wal") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSetStatusDecidesOnce(t *testing.T) {
	db, _ := open(t)
	st, ctx := db.Sandboxes(), t.Context()
	if err := st.Insert(ctx, sample("sb1", t0)); err != nil {
		t.Fatal(err)
	}
	var won sync.Map
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ok, err := st.SetStatus(ctx, "sb1", sandbox.Stopping, "r", t0, sandbox.Starting, sandbox.Running)
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Store(i, true)
			}
		})
	}
	wg.Wait()
	winners := 0
	won.Range(func(any, any) bool { winners++; return true })
	if winners != 1 {
		t.Fatalf("%d changed the status", winners)
	}
	if ok, err := st.SetStatus(ctx, "sb1", sandbox.Stopped, "", t0); ok || err != nil {
		t.Errorf("from no status at all: %v %v", ok, err)
	}
	if ok, err := st.Delete(ctx, "sb1"); !ok || err != nil {
		t.Errorf("delete: %v %v", ok, err)
	}
	if ok, err := st.Delete(ctx, "sb1"); ok || err != nil {
		t.Errorf("second delete: %v %v", ok, err)
	}
}

// An extension that was written after the clocks have looked is not lost.
func TestExpireMindsWhatWasWrittenSince(t *testing.T) {
	db, _ := open(t)
	st, ctx := db.Sandboxes(), t.Context()
	read := sample("sb1", t0)
	read.Status = sandbox.Running
	if err := st.Insert(ctx, read); err != nil {
		t.Fatal(err)
	}
	if err := st.Touch(ctx, map[string]time.Time{"sb1": t0.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	// The same value once more is an extension too.
	if ok, err := st.SetClocks(ctx, "sb1", sandbox.Timeouts{Timeout: &read.Timeout}, t0.Add(time.Minute), sandbox.Running); !ok || err != nil {
		t.Fatalf("SetClocks: %v %v", ok, err)
	}
	if ok, err := st.Expire(ctx, read, sandbox.Pausing, "late", t0.Add(time.Minute)); ok || err != nil {
		t.Errorf("Expire of what was extended: %v %v", ok, err)
	}
	read, err := st.Get(ctx, "sb1")
	if err != nil || read.Status != sandbox.Running {
		t.Fatalf("it is %s, %v", read.Status, err)
	}
	if err := st.Touch(ctx, map[string]time.Time{"sb1": t0.Add(2 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if ok, err := st.Expire(ctx, read, sandbox.Pausing, "late", read.UpdatedAt); ok != want || err != nil {
			t.Errorf("Expire: %v %v, want %v", ok, err, want)
		}
	}
	if got, err := st.Get(ctx, "sb1"); err != nil || got.Status != sandbox.Pausing || got.Reason != "late" {
		t.Errorf("it is %s (%s), %v", got.Status, got.Reason, err)
	}
}

func TestListFiltersAndPages(t *testing.T) {
	db, _ := open(t)
	st, ctx := db.Sandboxes(), t.Context()
	for i := range 6 {
		sb := sample(fmt.Sprintf("sb%d", i), t0.Add(time.Duration(i/2)*time.Second)) // pairs of the same time
		sb.Metadata = map[string]string{`k"'.$`: fmt.Sprint(i % 2), "n": fmt.Sprint(i)}
		if i%3 == 0 {
			sb.Status, sb.Template = sandbox.Running, "other"
		}
		if i == 5 {
			sb.Timeout, sb.Deadline = 0, 0
		}
		if err := st.Insert(ctx, sb); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(f sandbox.Filter) []string {
		t.Helper()
		found, err := st.List(ctx, f)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, sb := range found {
			ids = append(ids, sb.ID)
		}
		return ids
	}
	for name, c := range map[string]struct {
		f    sandbox.Filter
		want []string
	}{
		"all, newest first":  {sandbox.Filter{}, []string{"sb4", "sb5", "sb2", "sb3", "sb0", "sb1"}},
		"status":             {sandbox.Filter{Status: sandbox.Running}, []string{"sb3", "sb0"}},
		"template":           {sandbox.Filter{Template: "base"}, []string{"sb4", "sb5", "sb2", "sb1"}},
		"one label":          {sandbox.Filter{Metadata: map[string]string{`k"'.$`: "1"}}, []string{"sb5", "sb3", "sb1"}},
		"two labels":         {sandbox.Filter{Metadata: map[string]string{`k"'.$`: "1", "n": "3"}}, []string{"sb3"}},
		"no such label":      {sandbox.Filter{Metadata: map[string]string{"x": "1"}}, nil},
		"timed":              {sandbox.Filter{Timed: true}, []string{"sb4", "sb2", "sb3", "sb0", "sb1"}},
		"limit":              {sandbox.Filter{Limit: 2}, []string{"sb4", "sb5"}},
		"after, same time":   {sandbox.Filter{After: sandbox.Position{CreatedAt: t0.Add(time.Second), ID: "sb2"}}, []string{"sb3", "sb0", "sb1"}},
		"after, with filter": {sandbox.Filter{After: sandbox.Position{CreatedAt: t0.Add(time.Second), ID: "sb3"}, Template: "other", Limit: 9}, []string{"sb0"}},
	} {
		if diff := cmp.Diff(c.want, ids(c.f)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestTouchOnlyGoesForward(t *testing.T) {
	db, _ := open(t)
	st, ctx := db.Sandboxes(), t.Context()
	if err := st.Insert(ctx, sample("sb1", t0)); err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{t0.Add(time.Minute), t0} {
		if err := st.Touch(ctx, map[string]time.Time{"sb1": at, "unknown": at}); err != nil {
			t.Fatal(err)
		}
	}
	if sb, err := st.Get(ctx, "sb1"); err != nil || !sb.LastActiveAt.Equal(t0.Add(time.Minute)) {
		t.Fatalf("last active at %v, %v", sb.LastActiveAt, err)
	}
}

func TestOnlyNoRowsIsNotFound(t *testing.T) {
	db, _ := open(t)
	if _, err := db.Sandboxes().Get(t.Context(), "sbnone"); !fault.Is(err, fault.NotFound) {
		t.Errorf("no row: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := db.Sandboxes().Get(gone, "sbnone"); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled read: %v", err)
	}
	closed, err := Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := closed.Sandboxes().Get(t.Context(), "sbnone"); fault.CodeOf(err) != fault.Internal {
		t.Errorf("a closed database: %v", err)
	}
	if err := closed.Ping(t.Context()); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("ping of a closed database: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, url := range []string{"", "sqlite:", "postgres://x", "/a/path"} {
		if db, err := Open(t.Context(), url); err == nil {
			_ = db.Close()
			t.Errorf("opened %q", url)
		}
	}
	if _, err := Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "no", "dir.db")); err == nil {
		t.Error("opened a file in a directory that does not exist")
	}
}

func TestFirstKeyIsMadeOnce(t *testing.T) {
	db, _ := open(t)
	keys, ctx := db.Keys(), t.Context()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made []account.Key
	for i := range 4 {
		wg.Go(func() {
			k := account.Key{Hash: sha256.Sum256([]byte{byte(i)}), Prefix: "wrn_0", Name: "first", CreatedAt: t0}
			ok, err := keys.InsertFirstKey(ctx, k)
			if err != nil {
				t.Error(err)
			}
			if ok {
				mu.Lock()
				made = append(made, k)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("%d first keys", len(made))
	}
	if err := keys.TouchKey(ctx, made[0].Hash, t0.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	want := made[0]
	want.LastUsedAt = t0.Add(time.Hour)
	got, err := keys.KeyByHash(ctx, want.Hash)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v %s", err, diff)
	}
	if _, err := keys.KeyByHash(ctx, sha256.Sum256([]byte("other"))); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown key: %v", err)
	}
}
