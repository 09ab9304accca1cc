package rpc

import (
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
)

func TestPausesAreTranslated(t *testing.T) {
	at := time.Now().UTC()
	client, _ := serve(t, fakeSandboxes{
		pause: func(id string) (sandbox.Sandbox, error) {
			return sandbox.Sandbox{ID: id, Status: sandbox.Paused, PausedAt: at, SnapshotBytes: 7}, nil
		},
		resume: func(id string, wait time.Duration) (sandbox.Sandbox, error) {
			if wait != 1500*time.Millisecond {
				t.Errorf("waits %v", wait)
			}
			return sandbox.Sandbox{}, fault.New(fault.HostUnavailable, "the host is full")
		},
	})
	resp, err := client.PauseSandbox(t.Context(), connect.NewRequest(&hostv1.PauseSandboxRequest{Id: "sba"}))
	if err != nil {
		t.Fatal(err)
	}
	sb := resp.Msg.GetSandbox()
	if sb.GetStatus() != hostv1.SandboxStatus_SANDBOX_STATUS_PAUSED || !sb.GetPausedAt().AsTime().Equal(at) || sb.GetSnapshotBytes() != 7 {
		t.Errorf("paused %v", sb)
	}
	_, err = client.ResumeSandbox(t.Context(), connect.NewRequest(&hostv1.ResumeSandboxRequest{Id: "sba", WaitMs: 1500}))
	if !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("resume: %v", err)
	}
	_, err = client.ResumeSandbox(t.Context(), connect.NewRequest(&hostv1.ResumeSandboxRequest{Id: "sba", WaitMs: 1 << 62}))
	if !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a wait of ages: %v", err)
	}
	metrics, err := client.GetMetrics(t.Context(), connect.NewRequest(&hostv1.GetMetricsRequest{Id: "sba", RangeSeconds: 90}))
	if err != nil {
		t.Fatal(err)
	}
	if p := metrics.Msg.GetPoints(); len(p) != 1 || p[0].GetTime().AsTime().Unix() != 90 || p[0].GetCpuPct() != 12.5 || p[0].GetMemoryBytes() != 3 || p[0].GetDiskBytes() != 4 ||
		p[0].GetProcesses() != 5 || p[0].GetSentBytes() != 6 || p[0].GetReceivedBytes() != 7 || p[0].GetSentRate() != 8 || p[0].GetReceivedRate() != 9 {
		t.Errorf("points %v", p)
	}
	if l := metrics.Msg.GetLimits(); l.GetCpuPct() != 100 || l.GetMemoryBytes() != 30 || l.GetDiskBytes() != 40 || l.GetProcesses() != 50 || l.GetNetworkBitsPerSecond() != 80 {
		t.Errorf("limits %v", l)
	}
}

func TestSnapshotsAreTranslated(t *testing.T) {
	snap := snapshot.Snapshot{Bytes: 9, Differs: "it is not what was written", Manifest: snapshot.Manifest{
		ID: "sn1", SandboxID: "sba", Template: "base", DefaultUser: "user", Env: map[string]string{"A": "b"}, Stopped: 12 * time.Millisecond,
		Resources: snapshot.Resources{VCPUs: 1, MemoryMB: 2, DiskMB: 3}, Token: "secret",
	}}
	var deleted string
	var kept []sandbox.Warm
	client, _ := serveAll(t, fakeSandboxes{
		create: func(r sandbox.CreateRequest) (sandbox.Sandbox, error) {
			if r.Snapshot != "sn1" || r.Wait != time.Second {
				t.Errorf("asked for %+v", r)
			}
			return sandbox.Sandbox{ID: r.ID}, nil
		},
	}, fakeSnapshots{
		create: func(sandboxID, id string) (snapshot.Snapshot, error) {
			if sandboxID != "sba" || id != "sn1" {
				t.Errorf("snapshot %s of %s", id, sandboxID)
			}
			return snap, nil
		},
		list:   []snapshot.Snapshot{snap},
		delete: func(id string) error { deleted = id; return nil },
		warm:   func(all []sandbox.Warm) error { kept = all; return nil },
		fork: func(id string, copies []string) ([]sandbox.Sandbox, error) {
			if id != "sba" {
				t.Errorf("fork of %s", id)
			}
			return []sandbox.Sandbox{{ID: copies[0]}, {ID: copies[1]}}, nil
		},
	})
	made, err := client.CreateSnapshot(t.Context(), connect.NewRequest(&hostv1.CreateSnapshotRequest{SandboxId: "sba", SnapshotId: "sn1"}))
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.ListSnapshots(t.Context(), connect.NewRequest(&hostv1.ListSnapshotsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range append(list.Msg.GetSnapshots(), made.Msg.GetSnapshot()) {
		if got.GetId() != "sn1" || got.GetSandboxId() != "sba" || got.GetTemplate() != "base" || got.GetDefaultUser() != "user" || !got.GetDamaged() ||
			got.GetSizeBytes() != 9 || got.GetStoppedUs() != 12000 || got.GetResources().GetDiskMb() != 3 {
			t.Errorf("snapshot %v", got)
		}
	}
	if _, err := client.DeleteSnapshot(t.Context(), connect.NewRequest(&hostv1.DeleteSnapshotRequest{Id: "sn1"})); err != nil || deleted != "sn1" {
		t.Errorf("deleted %q: %v", deleted, err)
	}
	_, err = client.SetWarm(t.Context(), connect.NewRequest(&hostv1.SetWarmRequest{Warm: []*hostv1.SetWarmRequest_Warm{{SnapshotId: "sn1", Count: 3}}}))
	if err != nil || !slices.Equal(kept, []sandbox.Warm{{Snapshot: "sn1", Count: 3}}) {
		t.Errorf("warm %v: %v", kept, err)
	}
	forks, err := client.ForkSandbox(t.Context(), connect.NewRequest(&hostv1.ForkSandboxRequest{Id: "sba", CopyIds: []string{"sbb", "sbc"}}))
	if err != nil || len(forks.Msg.GetCopies()) != 2 || forks.Msg.GetCopies()[1].GetId() != "sbc" {
		t.Errorf("copies %v: %v", forks, err)
	}
	if _, err := client.CreateSandbox(t.Context(), connect.NewRequest(&hostv1.CreateSandboxRequest{Id: "sbd", SnapshotId: "sn1", WaitMs: 1000})); err != nil {
		t.Error(err)
	}
}
