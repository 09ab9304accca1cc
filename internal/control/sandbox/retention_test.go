package sandbox

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func (m *memSnapshots) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, s := range m.rows {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return names
}

func TestRetention(t *testing.T) {
	ages := map[string]time.Duration{
		"new": time.Minute, "middle": 2 * time.Hour, "old": 3 * time.Hour, "oldest": 4 * time.Hour,
		"warm": 5 * time.Hour, "in-use": 6 * time.Hour, "of-ended": 7 * time.Hour,
	}
	all := slices.Sorted(maps.Keys(ages))
	for name, test := range map[string]struct {
		keep Retention
		gone []string
	}{
		"nothing":       {Retention{}, nil},
		"old ones":      {Retention{MaxAge: 150 * time.Minute}, []string{"of-ended", "old", "oldest"}},
		"all but two":   {Retention{MaxCount: 2}, []string{"of-ended", "old", "oldest"}},
		"all but three": {Retention{MaxCount: 3}, []string{"of-ended", "oldest"}},
		"either":        {Retention{MaxAge: time.Hour, MaxCount: 3}, []string{"middle", "of-ended", "old", "oldest"}},
		"enough room":   {Retention{MaxAge: 24 * time.Hour, MaxCount: 9}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, rows, _ := newTest(t)
			x, store, host := s.snapshots, s.snapshots.store.(*memSnapshots), s.snapshots.host.(*fakeSnapshots)
			for i, name := range all {
				id := "sn" + string(rune('a'+i))
				store.put(Snapshot{ID: id, Name: name, Status: SnapshotReady, CreatedAt: now().Add(-ages[name])})
				host.keep(HostSnapshot{ID: id})
			}
			store.put(Snapshot{ID: "snx", Name: "being made", Status: SnapshotCreating, CreatedAt: now().Add(-9 * time.Hour)})
			rows.put(Sandbox{ID: "sb1", Status: Paused, Template: "in-use"})
			rows.put(Sandbox{ID: "sb2", Status: Stopped, Template: "of-ended"})
			x.retention = test.keep
			if err := x.retain(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := slices.DeleteFunc(append(slices.Clone(all), "being made"), func(n string) bool { return slices.Contains(test.gone, n) })
			slices.Sort(want)
			if diff := cmp.Diff(want, store.names()); diff != "" {
				t.Error("kept:", diff)
			}
			if len(host.kept) != len(all)-len(test.gone) {
				t.Errorf("the host has %v", host.kept)
			}
		})
	}
}

// One more is one too many, and the oldest goes; unless somebody makes a sandbox of it.
func TestRetentionFollowsCreations(t *testing.T) {
	s, _, rows, host, sb := withSandbox(t)
	x := s.Snapshots()
	x.retention = Retention{MaxCount: 1}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); x.runRetention(ctx) }()
	defer func() { cancel(); <-done }()
	for _, name := range []string{"one", "two"} {
		if _, err := x.Create(t.Context(), SnapshotOptions{SandboxID: sb.ID, Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "one is kept", func() bool { return slices.Equal(rows.names(), []string{"two"}) })
	host.onCreate = func(context.Context, Spec) error {
		rows.put(Snapshot{ID: "sn9", Name: "three", Status: SnapshotReady, CreatedAt: now().Add(time.Hour)})
		return x.retain(t.Context())
	}
	made, err := s.Create(t.Context(), Options{Template: "two"})
	if err != nil || len(rows.names()) != 2 {
		t.Fatalf("what a sandbox is being made from: %v, %v", rows.names(), err)
	}
	if err := s.Delete(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	x.retainSoon()
	eventually(t, "one is kept", func() bool { return slices.Equal(rows.names(), []string{"three"}) })
	if left, ok := x.uses.leave("sn9"); !ok {
		t.Error("it is in use for ever")
	} else {
		defer left()
	}
	if _, err := s.Create(t.Context(), Options{Template: "three"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("what is being removed: %v", err)
	}
}
