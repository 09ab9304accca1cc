package hostclient

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// Snapshots implements sandbox.HostSnapshots.
type Snapshots struct {
	rpc hostv1connect.HostServiceClient
}

var _ sandbox.HostSnapshots = (*Snapshots)(nil)

// Fork implements sandbox.HostSnapshots.
func (s *Snapshots) Fork(ctx context.Context, id string, copies []string) ([]sandbox.HostSandbox, error) {
	resp, err := s.rpc.ForkSandbox(ctx, connect.NewRequest(&hostv1.ForkSandboxRequest{Id: id, CopyIds: copies}))
	if err != nil {
		return nil, err
	}
	made := make([]sandbox.HostSandbox, len(resp.Msg.GetCopies()))
	for i, c := range resp.Msg.GetCopies() {
		made[i] = fromSandbox(c)
	}
	return made, nil
}

// Create implements sandbox.HostSnapshots.
func (s *Snapshots) Create(ctx context.Context, sandboxID, snapshotID string) (sandbox.HostSnapshot, error) {
	resp, err := s.rpc.CreateSnapshot(ctx, connect.NewRequest(&hostv1.CreateSnapshotRequest{SandboxId: sandboxID, SnapshotId: snapshotID}))
	if err != nil {
		return sandbox.HostSnapshot{}, err
	}
	return fromSnapshot(resp.Msg.GetSnapshot()), nil
}

// List implements sandbox.HostSnapshots.
func (s *Snapshots) List(ctx context.Context) ([]sandbox.HostSnapshot, error) {
	resp, err := s.rpc.ListSnapshots(ctx, connect.NewRequest(&hostv1.ListSnapshotsRequest{}))
	if err != nil {
		return nil, err
	}
	found := make([]sandbox.HostSnapshot, len(resp.Msg.GetSnapshots()))
	for i, snap := range resp.Msg.GetSnapshots() {
		found[i] = fromSnapshot(snap)
	}
	return found, nil
}

// Delete implements sandbox.HostSnapshots.
func (s *Snapshots) Delete(ctx context.Context, id string) error {
	_, err := s.rpc.DeleteSnapshot(ctx, connect.NewRequest(&hostv1.DeleteSnapshotRequest{Id: id}))
	return err
}

// SetWarm implements sandbox.HostSnapshots.
func (s *Snapshots) SetWarm(ctx context.Context, counts map[string]int) error {
	req := &hostv1.SetWarmRequest{}
	for id, n := range counts {
		req.Warm = append(req.Warm, &hostv1.SetWarmRequest_Warm{SnapshotId: id, Count: uint32(n)})
	}
	_, err := s.rpc.SetWarm(ctx, connect.NewRequest(req))
	return err
}

// Metrics implements sandbox.HostSnapshots.
func (s *Snapshots) Metrics(ctx context.Context, id string, before time.Duration) ([]sandbox.Point, error) {
	resp, err := s.rpc.GetMetrics(ctx, connect.NewRequest(&hostv1.GetMetricsRequest{Id: id, RangeSeconds: uint32(before / time.Second)}))
	if err != nil {
		return nil, err
	}
	l := resp.Msg.GetLimits()
	limits := sandbox.Limits{
		CPUPct: l.GetCpuPct(), MemoryBytes: int64(l.GetMemoryBytes()), DiskBytes: int64(l.GetDiskBytes()), Processes: int(l.GetProcesses()),
		NetworkBitsPerSecond: int64(l.GetNetworkBitsPerSecond()),
	}
	points := make([]sandbox.Point, len(resp.Msg.GetPoints()))
	for i, p := range resp.Msg.GetPoints() {
		points[i] = sandbox.Point{
			Time: fromTime(p.GetTime()), CPUPct: p.GetCpuPct(),
			MemoryBytes: int64(p.GetMemoryBytes()), DiskBytes: int64(p.GetDiskBytes()), Processes: int(p.GetProcesses()),
			SentBytes: int64(p.GetSentBytes()), ReceivedBytes: int64(p.GetReceivedBytes()),
			SentRate: p.GetSentRate(), ReceivedRate: p.GetReceivedRate(), Limits: limits,
		}
	}
	return points, nil
}

func fromSnapshot(s *hostv1.Snapshot) sandbox.HostSnapshot {
	return sandbox.HostSnapshot{
		ID: s.GetId(), SandboxID: s.GetSandboxId(), Template: s.GetTemplate(), Resources: fromResources(s.GetResources()),
		User: s.GetDefaultUser(), Damaged: s.GetDamaged(), SizeBytes: int64(s.GetSizeBytes()),
		Stopped: time.Duration(s.GetStoppedUs()) * time.Microsecond, CreatedAt: fromTime(s.GetCreatedAt()),
	}
}
