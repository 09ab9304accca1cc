package sandbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// withSandbox is a service with one running sandbox, and its snapshots.
func withSandbox(t *testing.T) (*Service, *memStore, *memSnapshots, *fakeSnapshots, Sandbox) {
	t.Helper()
	s, store, _ := newTest(t)
	sb, err := s.Create(t.Context(), Options{Timeout: time.Hour, Deadline: 2 * time.Hour, OnTimeout: Kill, Metadata: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	return s, store, s.snapshots.store.(*memSnapshots), s.snapshots.host.(*fakeSnapshots), sb
}

func TestSnapshotLife(t *testing.T) {
	s, _, _, host, sb := withSandbox(t)
	ctx, x := t.Context(), s.Snapshots()
	snap, err := x.Create(ctx, SnapshotOptions{SandboxID: sb.ID, Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if snap.Name != "web" || snap.SizeBytes != 99 || snap.Stopped != 5*time.Millisecond || snap.Resources.MemoryMB != 1024 || snap.SandboxID != sb.ID || snap.User != "u" {
		t.Errorf("%+v", snap)
	}
	if found, err := x.Find(ctx, snap.ID); err != nil || cmp.Diff(snap, found) != "" {
		t.Errorf("by its id: %v, %v", cmp.Diff(snap, found), err)
	}
	unnamed, err := x.Create(ctx, SnapshotOptions{SandboxID: sb.ID})
	if err != nil || unnamed.Name != unnamed.ID {
		t.Errorf("without a name: %+v, %v", unnamed, err)
	}

	var spec Spec
	host.onCreate = func(_ context.Context, sp Spec) error { spec = sp; return nil }
	made, err := s.Create(ctx, Options{Template: "web", Env: map[string]string{"A": "1"}, Wait: time.Second, Resources: Resources{VCPUs: 2}})
	if err != nil || made.Template != "web" || made.Resources.MemoryMB != 1024 {
		t.Errorf("made from it: %+v, %v", made, err)
	}
	if spec.SnapshotID != snap.ID || spec.Env["A"] != "1" || spec.Wait != time.Second {
		t.Errorf("the host was asked for %+v", spec)
	}
	if _, err := s.Create(ctx, Options{Template: snap.ID}); err != nil || spec.SnapshotID != snap.ID {
		t.Errorf("by its id: %v", err)
	}
	if _, err := s.Create(ctx, Options{Template: "web", Resources: Resources{MemoryMB: 512}}); !fault.Is(err, fault.InvalidRequest) || !strings.Contains(err.Error(), `"memory_mb" is 512`) {
		t.Errorf("of another size: %v", err)
	}

	if err := x.Delete(ctx, "web"); err != nil || host.hasSnapshot(snap.ID) {
		t.Errorf("deleted: %v", err)
	}
	for what, err := range map[string]error{"delete": x.Delete(ctx, "web"), "find": second(x.Find(ctx, snap.ID))} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s of one that is gone: %v", what, err)
		}
	}
	if all, err := x.List(ctx); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestSnapshotNames(t *testing.T) {
	s, _, _, _, sb := withSandbox(t)
	for name, code := range map[string]fault.Code{
		"Web": fault.InvalidRequest, "-a": fault.InvalidRequest, "a b": fault.InvalidRequest, "base": fault.InvalidRequest,
		strings.Repeat("a", 64): fault.InvalidRequest, sb.ID: fault.InvalidRequest, "sn" + strings.Repeat("a", 20): fault.InvalidRequest,
		"a.b_c-1": "", strings.Repeat("a", 63): "",
	} {
		if _, err := s.Snapshots().Create(t.Context(), SnapshotOptions{SandboxID: sb.ID, Name: name}); fault.CodeOf(err) != code {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := s.Snapshots().Create(t.Context(), SnapshotOptions{SandboxID: "sbnone"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("of no sandbox: %v", err)
	}
}

func TestOverwrite(t *testing.T) {
	s, _, rows, host, sb := withSandbox(t)
	ctx, x := t.Context(), s.Snapshots()
	old, err := x.Create(ctx, SnapshotOptions{SandboxID: sb.ID, Name: "warm"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{old.ID: 2}, host.warmed()); diff != "" {
		t.Error("kept warm:", diff)
	}
	if _, err := x.Create(ctx, SnapshotOptions{SandboxID: sb.ID, Name: "warm"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a name that is taken: %v", err)
	}
	broken := errors.New("boom")
	host.onCreateSnapshot = func(string) error {
		if found, err := x.Find(ctx, "warm"); err != nil || found.ID != old.ID {
			t.Errorf("while the new one is made: %+v, %v", found, err)
		}
		return broken
	}
	if _, err := x.Create(ctx, SnapshotOptions{SandboxID: sb.ID, Name: "warm", Overwrite: true}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if found, err := x.Find(ctx, "warm"); err != nil || found.ID != old.ID || len(rows.rows) != 1 {
		t.Errorf("after a new one that failed: %+v, %v", rows.rows, err)
	}
	host.onCreateSnapshot = nil
	renewed, err := x.Create(ctx, SnapshotOptions{SandboxID: sb.ID, Name: "warm", Overwrite: true})
	if err != nil || renewed.Name != "warm" || renewed.ID == old.ID {
		t.Errorf("%+v, %v", renewed, err)
	}
	if host.hasSnapshot(old.ID) || rows.row(old.ID).ID != "" {
		t.Error("the old one is still there")
	}
	if diff := cmp.Diff(map[string]int{renewed.ID: 2}, host.warmed()); diff != "" {
		t.Error("kept warm:", diff)
	}
}

func TestSnapshotWhoseClientHasGone(t *testing.T) {
	s, _, rows, host, sb := withSandbox(t)
	ctx, cancel := context.WithCancel(t.Context())
	host.onCreateSnapshot = func(string) error { cancel(); return nil }
	if _, err := s.Snapshots().Create(ctx, SnapshotOptions{SandboxID: sb.ID, Name: "x"}); !fault.Is(err, fault.Canceled) {
		t.Errorf("%v", err)
	}
	if len(rows.rows) != 0 || len(host.kept) != 0 || len(s.claims.held) != 0 {
		t.Errorf("left: %v, %v, %v", rows.rows, host.kept, s.claims.held)
	}
}

func TestFork(t *testing.T) {
	s, store, _, host, sb := withSandbox(t)
	minute := time.Minute
	copies, err := s.Snapshots().Fork(t.Context(), sb.ID, 3, &minute)
	if err != nil || len(copies) != 3 {
		t.Fatalf("%v, %v", copies, err)
	}
	for _, c := range copies {
		row := store.row(c.ID)
		if row.Status != Running || row.Metadata["k"] != "v" || row.Timeout != time.Minute || row.Deadline != 2*time.Hour || row.OnTimeout != Kill || row.Template != sb.Template || row.HostIP == "" {
			t.Errorf("%+v", row)
		}
		if left := time.Until(row.EndsAt()); left < 50*time.Second {
			t.Errorf("a copy ends in %v", left)
		}
	}
	if copies, err = s.Snapshots().Fork(t.Context(), sb.ID, 1, nil); err != nil || copies[0].Timeout != time.Hour {
		t.Errorf("%+v, %v", copies, err)
	}
	for count, code := range map[int]fault.Code{0: fault.InvalidRequest, MaxFork + 1: fault.InvalidRequest} {
		if _, err := s.Snapshots().Fork(t.Context(), sb.ID, count, nil); fault.CodeOf(err) != code {
			t.Errorf("%d copies: %v", count, err)
		}
	}
	before := store.len()
	host.onFork = func([]string) error { return fault.New(fault.NoSpace, "full") }
	if _, err := s.Snapshots().Fork(t.Context(), sb.ID, 5, nil); !fault.Is(err, fault.NoSpace) || store.len() != before || len(s.claims.held) != 0 {
		t.Errorf("a fork that failed: %v, %d rows of %d", err, store.len(), before)
	}
	host.onFork = nil
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshots().Fork(t.Context(), sb.ID, 1, nil); !fault.Is(err, fault.InvalidState) {
		t.Errorf("of a paused sandbox: %v", err)
	}
}

func TestMissingSnapshot(t *testing.T) {
	s, _, rows, _, _ := withSandbox(t)
	rows.put(Snapshot{ID: "sn1", Name: "gone", Status: SnapshotMissing})
	if _, err := s.Create(t.Context(), Options{Template: "gone"}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "lost") {
		t.Errorf("%v", err)
	}
	if err := s.Snapshots().Delete(t.Context(), "gone"); err != nil || len(rows.rows) != 0 {
		t.Errorf("%v", err)
	}
}

// That a snapshot is damaged the host may find only when it is used.
func TestDamagedSnapshot(t *testing.T) {
	s, store, _, host, sb := withSandbox(t)
	snap, err := s.Snapshots().Create(t.Context(), SnapshotOptions{SandboxID: sb.ID, Name: "flipped"})
	if err != nil {
		t.Fatal(err)
	}
	before := store.len()
	host.onCreate = func(context.Context, Spec) error {
		host.keep(HostSnapshot{ID: snap.ID, Damaged: true})
		return fault.New(fault.Internal, "snapshot %s is damaged", snap.ID)
	}
	if _, err := s.Create(t.Context(), Options{Template: "flipped"}); !fault.Is(err, fault.Internal) {
		t.Errorf("%v", err)
	}
	if list, err := s.Snapshots().List(t.Context()); err != nil || len(list) != 1 || list[0].Status != SnapshotDamaged {
		t.Errorf("%+v, %v", list, err)
	}
	host.onCreate = func(context.Context, Spec) error { t.Error("the host was asked to use it again"); return nil }
	if _, err := s.Create(t.Context(), Options{Template: "flipped"}); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "delete it") {
		t.Errorf("%v", err)
	}
	if err := s.Snapshots().Delete(t.Context(), "flipped"); err != nil || host.hasSnapshot(snap.ID) || store.len() != before {
		t.Errorf("%v", err)
	}
}
