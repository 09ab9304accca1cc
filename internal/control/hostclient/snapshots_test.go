package hostclient

import (
	"context"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
)

// statefulHost is a host agent with one sandbox, sb1, and one snapshot, sn1.
type statefulHost struct {
	fakeHost
	waited uint64
	warm   map[string]uint32
}

var pausedAt = time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC)

func one(id string, status hostv1.SandboxStatus) (*hostv1.Sandbox, error) {
	if id != "sb1" {
		return nil, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	return &hostv1.Sandbox{
		Id: id, Status: status, Template: "base", Resources: &hostv1.Resources{Vcpus: 1, MemoryMb: 2, DiskMb: 3},
		PausedAt: timestamppb.New(pausedAt), SnapshotBytes: 9, CreatedAt: timestamppb.New(pausedAt),
	}, nil
}

func (h *statefulHost) GetSandbox(_ context.Context, req *connect.Request[hostv1.GetSandboxRequest]) (*connect.Response[hostv1.GetSandboxResponse], error) {
	sb, err := one(req.Msg.GetId(), hostv1.SandboxStatus_SANDBOX_STATUS_PAUSING)
	return connect.NewResponse(&hostv1.GetSandboxResponse{Sandbox: sb}), err
}

func (h *statefulHost) PauseSandbox(_ context.Context, req *connect.Request[hostv1.PauseSandboxRequest]) (*connect.Response[hostv1.PauseSandboxResponse], error) {
	sb, err := one(req.Msg.GetId(), hostv1.SandboxStatus_SANDBOX_STATUS_PAUSED)
	return connect.NewResponse(&hostv1.PauseSandboxResponse{Sandbox: sb}), err
}

func (h *statefulHost) ResumeSandbox(_ context.Context, req *connect.Request[hostv1.ResumeSandboxRequest]) (*connect.Response[hostv1.ResumeSandboxResponse], error) {
	h.waited = req.Msg.GetWaitMs()
	sb, err := one(req.Msg.GetId(), hostv1.SandboxStatus_SANDBOX_STATUS_RUNNING)
	return connect.NewResponse(&hostv1.ResumeSandboxResponse{Sandbox: sb}), err
}

func (h *statefulHost) ForkSandbox(_ context.Context, req *connect.Request[hostv1.ForkSandboxRequest]) (*connect.Response[hostv1.ForkSandboxResponse], error) {
	if _, err := one(req.Msg.GetId(), 0); err != nil {
		return nil, err
	}
	out := &hostv1.ForkSandboxResponse{}
	for _, id := range req.Msg.GetCopyIds() {
		out.Copies = append(out.Copies, &hostv1.Sandbox{Id: id, Status: hostv1.SandboxStatus_SANDBOX_STATUS_RUNNING})
	}
	return connect.NewResponse(out), nil
}

func theSnapshot() *hostv1.Snapshot {
	return &hostv1.Snapshot{
		Id: "sn1", SandboxId: "sb1", Template: "base", Resources: &hostv1.Resources{Vcpus: 1, MemoryMb: 2, DiskMb: 3},
		DefaultUser: "u", Damaged: true, SizeBytes: 7, CreatedAt: timestamppb.New(pausedAt), StoppedUs: 1500,
	}
}

func (h *statefulHost) CreateSnapshot(_ context.Context, req *connect.Request[hostv1.CreateSnapshotRequest]) (*connect.Response[hostv1.CreateSnapshotResponse], error) {
	_, err := one(req.Msg.GetSandboxId(), 0)
	if req.Msg.GetSnapshotId() != "sn1" {
		err = fault.New(fault.InvalidRequest, "snapshot %q", req.Msg.GetSnapshotId())
	}
	return connect.NewResponse(&hostv1.CreateSnapshotResponse{Snapshot: theSnapshot()}), err
}

func (h *statefulHost) ListSnapshots(context.Context, *connect.Request[hostv1.ListSnapshotsRequest]) (*connect.Response[hostv1.ListSnapshotsResponse], error) {
	return connect.NewResponse(&hostv1.ListSnapshotsResponse{Snapshots: []*hostv1.Snapshot{theSnapshot()}}), nil
}

func (h *statefulHost) DeleteSnapshot(_ context.Context, req *connect.Request[hostv1.DeleteSnapshotRequest]) (*connect.Response[hostv1.DeleteSnapshotResponse], error) {
	if req.Msg.GetId() != "sn1" {
		return nil, fault.New(fault.NotFound, "there is no snapshot %q", req.Msg.GetId())
	}
	return connect.NewResponse(&hostv1.DeleteSnapshotResponse{}), nil
}

func (h *statefulHost) SetWarm(_ context.Context, req *connect.Request[hostv1.SetWarmRequest]) (*connect.Response[hostv1.SetWarmResponse], error) {
	h.warm = map[string]uint32{}
	for _, w := range req.Msg.GetWarm() {
		h.warm[w.GetSnapshotId()] = w.GetCount()
	}
	return connect.NewResponse(&hostv1.SetWarmResponse{}), nil
}

func (h *statefulHost) GetMetrics(_ context.Context, req *connect.Request[hostv1.GetMetricsRequest]) (*connect.Response[hostv1.GetMetricsResponse], error) {
	return connect.NewResponse(&hostv1.GetMetricsResponse{Points: []*hostv1.GetMetricsResponse_Point{{
		Time: timestamppb.New(pausedAt), CpuPct: 12.5, MemoryBytes: uint64(req.Msg.GetRangeSeconds()), DiskBytes: 4,
		Processes: 5, SentBytes: 6, ReceivedBytes: 7, SentRate: 8, ReceivedRate: 9,
	}}, Limits: &hostv1.GetMetricsResponse_Limits{CpuPct: 100, MemoryBytes: 30, DiskBytes: 40, Processes: 50, NetworkBitsPerSecond: 80}}), nil
}

func TestStatesTranslate(t *testing.T) {
	h := &statefulHost{}
	l, ctx := serve(t, h).Lifecycle, t.Context()
	want := sandbox.HostSandbox{
		ID: "sb1", Template: "base", Resources: sandbox.Resources{VCPUs: 1, MemoryMB: 2, DiskMB: 3},
		PausedAt: pausedAt, SnapshotBytes: 9, CreatedAt: pausedAt,
	}
	for status, call := range map[sandbox.Status]func(id string) (sandbox.HostSandbox, error){
		sandbox.Pausing: func(id string) (sandbox.HostSandbox, error) { return l.Get(ctx, id) },
		sandbox.Paused:  func(id string) (sandbox.HostSandbox, error) { return l.Pause(ctx, id) },
		sandbox.Running: func(id string) (sandbox.HostSandbox, error) { return l.Resume(ctx, id, 1500*time.Millisecond) },
	} {
		want.Status = status
		if got, err := call("sb1"); err != nil || got != want {
			t.Errorf("%s: %v %s", status, err, cmp.Diff(want, got))
		}
		if _, err := call("sb2"); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s of an unknown sandbox: %v", status, err)
		}
	}
	if h.waited != 1500 {
		t.Errorf("the host was to wait %d ms", h.waited)
	}
}

func TestSnapshotsTranslate(t *testing.T) {
	h := &statefulHost{}
	x, ctx := serve(t, h).Snapshots, t.Context()
	want := sandbox.HostSnapshot{
		ID: "sn1", SandboxID: "sb1", Template: "base", Resources: sandbox.Resources{VCPUs: 1, MemoryMB: 2, DiskMB: 3},
		User: "u", Damaged: true, SizeBytes: 7, Stopped: 1500 * time.Microsecond, CreatedAt: pausedAt,
	}
	if got, err := x.Create(ctx, "sb1", "sn1"); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%v %s", err, cmp.Diff(want, got))
	}
	if got, err := x.List(ctx); err != nil || cmp.Diff([]sandbox.HostSnapshot{want}, got) != "" {
		t.Errorf("%v %s", err, cmp.Diff([]sandbox.HostSnapshot{want}, got))
	}
	if err := x.Delete(ctx, "sn1"); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"snapshot": errOf(x.Create(ctx, "sb2", "sn1")), "delete": x.Delete(ctx, "sn2"), "fork": errOf(x.Fork(ctx, "sb2", nil)),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	copies, err := x.Fork(ctx, "sb1", []string{"c1", "c2"})
	ids := []string{}
	for _, c := range copies {
		ids = append(ids, c.ID)
	}
	if err != nil || !slices.Equal(ids, []string{"c1", "c2"}) {
		t.Errorf("%v, %v", copies, err)
	}
	if err := x.SetWarm(ctx, map[string]int{"sn1": 2}); err != nil || h.warm["sn1"] != 2 || len(h.warm) != 1 {
		t.Errorf("%v, %v", h.warm, err)
	}
	points, err := x.Metrics(ctx, "sb1", 10*time.Minute)
	wanted := []sandbox.Point{{
		Time: pausedAt, CPUPct: 12.5, MemoryBytes: 600, DiskBytes: 4, Processes: 5, SentBytes: 6, ReceivedBytes: 7, SentRate: 8, ReceivedRate: 9,
		Limits: sandbox.Limits{CPUPct: 100, MemoryBytes: 30, DiskBytes: 40, Processes: 50, NetworkBitsPerSecond: 80},
	}}
	if err != nil || cmp.Diff(wanted, points) != "" {
		t.Errorf("%v %s", err, cmp.Diff(wanted, points))
	}
}

func errOf[T any](_ T, err error) error { return err }
