package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
)

func (s *server) PauseSandbox(ctx context.Context, req *connect.Request[hostv1.PauseSandboxRequest]) (*connect.Response[hostv1.PauseSandboxResponse], error) {
	sb, err := s.Sandboxes.Pause(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.PauseSandboxResponse{Sandbox: toSandbox(sb)}), nil
}

func (s *server) ResumeSandbox(ctx context.Context, req *connect.Request[hostv1.ResumeSandboxRequest]) (*connect.Response[hostv1.ResumeSandboxResponse], error) {
	wait, err := fromMillis(req.Msg.GetWaitMs())
	if err != nil {
		return nil, err
	}
	sb, err := s.Sandboxes.Resume(ctx, req.Msg.GetId(), wait)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.ResumeSandboxResponse{Sandbox: toSandbox(sb)}), nil
}

func (s *server) ForkSandbox(ctx context.Context, req *connect.Request[hostv1.ForkSandboxRequest]) (*connect.Response[hostv1.ForkSandboxResponse], error) {
	copies, err := s.Snapshots.Fork(ctx, req.Msg.GetId(), req.Msg.GetCopyIds())
	if err != nil {
		return nil, err
	}
	resp := &hostv1.ForkSandboxResponse{}
	for _, sb := range copies {
		resp.Copies = append(resp.Copies, toSandbox(sb))
	}
	return connect.NewResponse(resp), nil
}

func (s *server) GetMetrics(_ context.Context, req *connect.Request[hostv1.GetMetricsRequest]) (*connect.Response[hostv1.GetMetricsResponse], error) {
	points, err := s.Host.Metrics(req.Msg.GetId(), time.Duration(req.Msg.GetRangeSeconds())*time.Second)
	if err != nil {
		return nil, err
	}
	resp := &hostv1.GetMetricsResponse{}
	for _, p := range points {
		resp.Points = append(resp.Points, &hostv1.GetMetricsResponse_Point{
			Time: timestamppb.New(p.Time), CpuPct: p.CPUPct, MemoryBytes: p.MemoryBytes, DiskBytes: p.DiskBytes, Processes: uint32(p.Processes),
			SentBytes: p.SentBytes, ReceivedBytes: p.ReceivedBytes, SentRate: p.SentRate, ReceivedRate: p.ReceivedRate,
		})
	}
	if n := len(points); n > 0 {
		l := points[n-1].Limits // all have the same
		resp.Limits = &hostv1.GetMetricsResponse_Limits{
			CpuPct: l.CPUPct, MemoryBytes: l.MemoryBytes, DiskBytes: l.DiskBytes, Processes: uint32(l.Processes),
			NetworkBitsPerSecond: l.NetworkBitsPerSecond,
		}
	}
	return connect.NewResponse(resp), nil
}

func (s *server) CreateSnapshot(ctx context.Context, req *connect.Request[hostv1.CreateSnapshotRequest]) (*connect.Response[hostv1.CreateSnapshotResponse], error) {
	snap, err := s.Snapshots.Create(ctx, req.Msg.GetSandboxId(), req.Msg.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.CreateSnapshotResponse{Snapshot: toSnapshot(snap)}), nil
}

func (s *server) ListSnapshots(context.Context, *connect.Request[hostv1.ListSnapshotsRequest]) (*connect.Response[hostv1.ListSnapshotsResponse], error) {
	resp := &hostv1.ListSnapshotsResponse{}
	for _, snap := range s.Snapshots.List() {
		resp.Snapshots = append(resp.Snapshots, toSnapshot(snap))
	}
	return connect.NewResponse(resp), nil
}

func (s *server) DeleteSnapshot(ctx context.Context, req *connect.Request[hostv1.DeleteSnapshotRequest]) (*connect.Response[hostv1.DeleteSnapshotResponse], error) {
	if err := s.Snapshots.Delete(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.DeleteSnapshotResponse{}), nil
}

func (s *server) SetWarm(ctx context.Context, req *connect.Request[hostv1.SetWarmRequest]) (*connect.Response[hostv1.SetWarmResponse], error) {
	warm := make([]sandbox.Warm, 0, len(req.Msg.GetWarm()))
	for _, w := range req.Msg.GetWarm() {
		warm = append(warm, sandbox.Warm{Snapshot: w.GetSnapshotId(), Count: int(w.GetCount())})
	}
	if err := s.Snapshots.SetWarm(ctx, warm); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.SetWarmResponse{}), nil
}

func toSnapshot(snap snapshot.Snapshot) *hostv1.Snapshot {
	return &hostv1.Snapshot{
		Id: snap.ID, SandboxId: snap.SandboxID, Template: snap.Template, DefaultUser: snap.DefaultUser,
		Resources: toResources(sandbox.Resources(snap.Resources)), SizeBytes: uint64(snap.Bytes),
		CreatedAt: toTime(snap.CreatedAt), StoppedUs: uint64(snap.Stopped.Microseconds()),
		Damaged: snap.Damaged != "" || snap.Differs != "",
	}
}

// maxWait is the longest that a caller may want to wait for room.
const maxWait = time.Hour

// fromMillis takes over how long a caller wants to wait.
func fromMillis(ms uint64) (time.Duration, error) {
	if ms > uint64(maxWait.Milliseconds()) {
		return 0, fault.New(fault.InvalidRequest, "the wait must be at most %d ms, not %d", maxWait.Milliseconds(), ms)
	}
	return time.Duration(ms) * time.Millisecond, nil
}
