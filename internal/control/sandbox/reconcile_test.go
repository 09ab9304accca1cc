package sandbox

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReconcileTable is the table in docs/architecture.md: what becomes of a row in one
// status whose host says another. "" is a row, or a sandbox, that is not there.
func TestReconcileTable(t *testing.T) {
	hostSays := []Status{"", Running, Pausing, Paused, Resuming, Stopped, Error}
	table := map[Status][]Status{
		//           not there  running  pausing  paused  resuming  stopped  error
		"":       {"", Running, Pausing, Paused, Resuming, "", Error},
		Starting: {"", "", "", "", "", "", ""},
		Running:  {Missing, Running, Pausing, Paused, Resuming, Stopped, Error},
		Pausing:  {Missing, Running, Pausing, Paused, Resuming, Stopped, Error},
		Paused:   {Missing, Running, Pausing, Paused, Resuming, Stopped, Error},
		Resuming: {Missing, Running, Pausing, Paused, Resuming, Stopped, Error},
		Stopping: {"", "", "", "", "", "", ""}, // without a reason: it was being deleted
		Stopped:  {Stopped, Running, Pausing, Paused, Resuming, Stopped, Stopped},
		Error:    {Error, Running, Pausing, Paused, Resuming, Error, Error},
		Missing:  {Missing, Running, Pausing, Paused, Resuming, Stopped, Error},
	}
	for row, want := range table {
		for i, onHost := range hostSays {
			s, store, host := newTest(t)
			if row != "" {
				sb := Sandbox{ID: "sb1", Status: row, OnTimeout: Pause}
				if row.ended() {
					sb.Reason = "as it was"
				}
				store.put(sb)
			}
			if onHost != "" {
				host.sandboxes["sb1"] = HostSandbox{ID: "sb1", Status: onHost, Reason: "host's word", Template: "base"}
			}
			if err := once(t, s); err != nil {
				t.Errorf("%q and %q: %v", row, onHost, err)
			}
			got := store.row("sb1")
			if got.Status != want[i] {
				t.Errorf("a row that is %q, and the host says %q: it is now %q", row, onHost, got.Status)
			}
			if got.Status.ended() && got.Reason == "" {
				t.Errorf("%q and %q: no reason", row, onHost)
			}
			if removed := want[i] == "" && onHost != "" && row != ""; removed == host.has("sb1") && onHost != "" {
				t.Errorf("%q and %q: the host has it: %v", row, onHost, host.has("sb1"))
			}
		}
	}
}

// once follows the host's news until all is reconciled.
func once(t *testing.T, s *Service) error {
	t.Helper()
	before, err := s.store.List(t.Context(), Filter{})
	if err != nil {
		return err
	}
	seen := make(map[string]HostSandbox)
	host := s.host.(*fakeHost)
	for id, h := range host.sandboxes {
		seen[id] = h
	}
	return s.reconcile(t.Context(), before, seen)
}

func TestReconcileSnapshots(t *testing.T) {
	s, _, _ := newTest(t)
	store, host := s.snapshots.store.(*memSnapshots), s.snapshots.host.(*fakeSnapshots)
	for _, row := range []Snapshot{
		{ID: "sn1", Name: "kept", Status: SnapshotReady},
		{ID: "sn2", Name: "lost", Status: SnapshotReady},
		{ID: "sn3", Name: "back", Status: SnapshotMissing},
		{ID: "sn4", Name: "half", Status: SnapshotCreating},
		{ID: "sn5", Name: "sn5", Status: SnapshotDeleting},
		{ID: "sn6", Name: "mine", Status: SnapshotCreating},
		{ID: "sn8", Name: "warm", Status: SnapshotReady},
		{ID: "sn9", Name: "flipped", Status: SnapshotReady},
		{ID: "sn10", Name: "mended", Status: SnapshotDamaged},
		{ID: "sn11", Name: "damaged, then lost", Status: SnapshotDamaged},
	} {
		store.put(row)
	}
	for _, id := range []string{"sn1", "sn3", "sn4", "sn5", "sn6", "sn7", "sn8", "sn9", "sn10", "pa1"} {
		host.keep(HostSnapshot{ID: id, Damaged: id == "sn9" || id == "pa1"})
	}
	s.claims.take("sn6")
	if err := s.snapshots.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]SnapshotStatus{}
	for id, row := range store.rows {
		got[id] = row.Status
	}
	want := map[string]SnapshotStatus{
		"sn1": SnapshotReady, "sn2": SnapshotMissing, "sn3": SnapshotReady,
		"sn6": SnapshotCreating, "sn7": SnapshotReady, "sn8": SnapshotReady,
		"sn9": SnapshotDamaged, "sn10": SnapshotReady, "sn11": SnapshotMissing, "pa1": SnapshotDamaged,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for id, want := range map[string]bool{"sn1": true, "sn4": false, "sn5": false, "sn6": true, "sn7": true} {
		if host.hasSnapshot(id) != want {
			t.Errorf("the host has %s: %v", id, !want)
		}
	}
	if diff := cmp.Diff(map[string]int{"sn8": 2}, host.warmed()); diff != "" {
		t.Errorf("kept warm: %s", diff)
	}
}
