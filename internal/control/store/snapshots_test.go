package store

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func snapshot(id, name string, at time.Time) sandbox.Snapshot {
	return sandbox.Snapshot{
		ID: id, Name: name, Status: sandbox.SnapshotCreating, HostID: "h1", SandboxID: "sb1", Template: "base",
		Resources: sandbox.Resources{VCPUs: 2, MemoryMB: 1024, DiskMB: 4096}, CreatedAt: at,
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	db, _ := open(t)
	st, ctx := db.Snapshots(), t.Context()
	want := snapshot("sn1", "web", t0)
	if err := st.Insert(ctx, want); err != nil {
		t.Fatal(err)
	}
	if err := st.Insert(ctx, snapshot("sn2", "web", t0)); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("a name that is taken: %v", err)
	}
	if _, err := st.Find(ctx, "web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is being made is found: %v", err)
	}
	want.User, want.SizeBytes, want.Stopped = "u", 123, 5*time.Millisecond
	want.Status, want.CreatedAt = sandbox.SnapshotReady, t0.Add(time.Second)
	if ok, err := st.Promote(ctx, want, "web"); !ok || err != nil {
		t.Fatalf("promote: %v, %v", ok, err)
	}
	for _, name := range []string{"web", "sn1"} {
		if got, err := st.Find(ctx, name); err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%s: %v %s", name, err, cmp.Diff(want, got))
		}
	}
	if ok, err := st.Promote(ctx, want, "other"); ok || err != nil {
		t.Errorf("promoted twice: %v, %v", ok, err)
	}
	if err := st.SetStatus(ctx, "sn1", sandbox.SnapshotMissing, sandbox.SnapshotCreating); err != nil {
		t.Error(err)
	}
	if got, err := st.Find(ctx, "web"); err != nil || got.Status != sandbox.SnapshotReady {
		t.Errorf("from another status: %+v, %v", got, err)
	}
	if err := st.SetStatus(ctx, "sn1", sandbox.SnapshotMissing, sandbox.SnapshotReady); err != nil {
		t.Error(err)
	}
	if got, err := st.Find(ctx, "web"); err != nil || got.Status != sandbox.SnapshotMissing {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPromoteTakesTheNameOver(t *testing.T) {
	db, _ := open(t)
	st, ctx := db.Snapshots(), t.Context()
	for _, s := range []sandbox.Snapshot{snapshot("sn1", "web", t0), snapshot("sn2", "sn2", t0.Add(time.Second))} {
		if err := st.Insert(ctx, s); err != nil {
			t.Fatal(err)
		}
		if ok, err := st.Promote(ctx, s, "web"); !ok || err != nil {
			t.Fatalf("%v, %v", ok, err)
		}
	}
	all, err := st.List(ctx)
	if err != nil || len(all) != 2 || all[0].ID != "sn2" || all[0].Name != "web" || all[0].Status != sandbox.SnapshotReady ||
		all[1].Name != "sn1" || all[1].Status != sandbox.SnapshotDeleting {
		t.Errorf("%+v, %v", all, err)
	}
	if err := st.Retire(ctx, "sn2"); err != nil {
		t.Error(err)
	}
	// The name is free at once.
	if err := st.Insert(ctx, snapshot("sn3", "web", t0)); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"sn1", "sn2", "sn3"} {
		if err := st.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if all, err := st.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestSaveGoesForwardAndKeepsClocks(t *testing.T) {
	db, _ := open(t)
	st, ctx := db.Sandboxes(), t.Context()
	sb := sample("sb1", t0)
	if err := st.Insert(ctx, sb); err != nil {
		t.Fatal(err)
	}
	timeout, deadline := time.Second, 2*time.Second
	clocks := sandbox.Timeouts{Deadline: &deadline, OnTimeout: sandbox.Pause}
	if ok, err := st.SetClocks(ctx, "sb1", clocks, t0.Add(time.Hour), sandbox.Running); ok || err != nil {
		t.Errorf("clocks in another status: %v, %v", ok, err)
	}
	if ok, err := st.SetClocks(ctx, "sb1", clocks, t0.Add(time.Hour), sandbox.Starting); !ok || err != nil {
		t.Errorf("clocks: %v, %v", ok, err)
	}
	// Who sets one of them leaves the others as they are.
	if ok, err := st.SetClocks(ctx, "sb1", sandbox.Timeouts{Timeout: &timeout}, t0, sandbox.Starting); !ok || err != nil {
		t.Errorf("the timeout alone: %v, %v", ok, err)
	}
	if err := st.Touch(ctx, map[string]time.Time{"sb1": t0.Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	sb.Status, sb.PausedAt, sb.SnapshotBytes, sb.LastActiveAt = sandbox.Paused, t0.Add(time.Second), 42, t0
	if ok, err := st.Save(ctx, sb, sandbox.Starting); !ok || err != nil {
		t.Fatalf("save: %v, %v", ok, err)
	}
	got, err := st.Get(ctx, "sb1")
	if err != nil {
		t.Fatal(err)
	}
	want := sb
	want.Timeout, want.Deadline, want.OnTimeout = timeout, deadline, clocks.OnTimeout
	want.DeadlineFrom, want.LastActiveAt = t0.Add(time.Hour), t0.Add(time.Minute)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
