package hostclient

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// Lifecycle implements sandbox.Host.
type Lifecycle struct {
	rpc hostv1connect.HostServiceClient
}

var _ sandbox.Host = (*Lifecycle)(nil)

// Describe implements sandbox.Host.
func (l *Lifecycle) Describe(ctx context.Context) (sandbox.HostInfo, error) {
	resp, err := l.rpc.GetHost(ctx, connect.NewRequest(&hostv1.GetHostRequest{}))
	if err != nil {
		return sandbox.HostInfo{}, err
	}
	return sandbox.HostInfo{
		ID:        resp.Msg.GetHostId(),
		Runtime:   resp.Msg.GetRuntime(),
		Max:       fromResources(resp.Msg.GetMaxResources()),
		Templates: resp.Msg.GetTemplates(),
	}, nil
}

// Create implements sandbox.Host.
func (l *Lifecycle) Create(ctx context.Context, spec sandbox.Spec) (sandbox.HostSandbox, error) {
	resp, err := l.rpc.CreateSandbox(ctx, connect.NewRequest(&hostv1.CreateSandboxRequest{
		Id:       spec.ID,
		Template: spec.Template,
		Resources: &hostv1.Resources{
			Vcpus:    uint32(spec.Resources.VCPUs),
			MemoryMb: uint32(spec.Resources.MemoryMB),
			DiskMb:   uint32(spec.Resources.DiskMB),
		},
		Env:         spec.Env,
		DefaultUser: spec.User,
		SnapshotId:  spec.SnapshotID,
		WaitMs:      uint64(spec.Wait.Milliseconds()),
	}))
	if err != nil {
		return sandbox.HostSandbox{}, err
	}
	return fromSandbox(resp.Msg.GetSandbox()), nil
}

// Get implements sandbox.Host.
func (l *Lifecycle) Get(ctx context.Context, id string) (sandbox.HostSandbox, error) {
	resp, err := l.rpc.GetSandbox(ctx, connect.NewRequest(&hostv1.GetSandboxRequest{Id: id}))
	if err != nil {
		return sandbox.HostSandbox{}, err
	}
	return fromSandbox(resp.Msg.GetSandbox()), nil
}

// Pause implements sandbox.Host.
func (l *Lifecycle) Pause(ctx context.Context, id string) (sandbox.HostSandbox, error) {
	resp, err := l.rpc.PauseSandbox(ctx, connect.NewRequest(&hostv1.PauseSandboxRequest{Id: id}))
	if err != nil {
		return sandbox.HostSandbox{}, err
	}
	return fromSandbox(resp.Msg.GetSandbox()), nil
}

// Resume implements sandbox.Host.
func (l *Lifecycle) Resume(ctx context.Context, id string, wait time.Duration) (sandbox.HostSandbox, error) {
	resp, err := l.rpc.ResumeSandbox(ctx, connect.NewRequest(&hostv1.ResumeSandboxRequest{Id: id, WaitMs: uint64(wait.Milliseconds())}))
	if err != nil {
		return sandbox.HostSandbox{}, err
	}
	return fromSandbox(resp.Msg.GetSandbox()), nil
}

// Destroy implements sandbox.Host.
func (l *Lifecycle) Destroy(ctx context.Context, id string) error {
	_, err := l.rpc.DestroySandbox(ctx, connect.NewRequest(&hostv1.DestroySandboxRequest{Id: id}))
	return err
}

// Watch implements sandbox.Host.
func (l *Lifecycle) Watch(ctx context.Context, each func(sandbox.HostEvent) error) error {
	// An each that fails ends the stream, not only this function.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.rpc.WatchSandboxes(ctx, connect.NewRequest(&hostv1.WatchSandboxesRequest{}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		var ev sandbox.HostEvent
		switch e := stream.Msg().GetEvent().(type) {
		case *hostv1.WatchSandboxesResponse_Sandbox:
			ev.Sandbox = fromSandbox(e.Sandbox)
		case *hostv1.WatchSandboxesResponse_Synced_:
			ev.Synced = true
		default:
			continue // a newer host's news
		}
		if err := each(ev); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return fault.New(fault.HostUnavailable, "the host agent ended its news")
}

var statuses = map[hostv1.SandboxStatus]sandbox.Status{
	hostv1.SandboxStatus_SANDBOX_STATUS_STARTING: sandbox.Starting,
	hostv1.SandboxStatus_SANDBOX_STATUS_RUNNING:  sandbox.Running,
	hostv1.SandboxStatus_SANDBOX_STATUS_PAUSING:  sandbox.Pausing,
	hostv1.SandboxStatus_SANDBOX_STATUS_PAUSED:   sandbox.Paused,
	hostv1.SandboxStatus_SANDBOX_STATUS_RESUMING: sandbox.Resuming,
	hostv1.SandboxStatus_SANDBOX_STATUS_STOPPING: sandbox.Stopping,
	hostv1.SandboxStatus_SANDBOX_STATUS_STOPPED:  sandbox.Stopped,
	hostv1.SandboxStatus_SANDBOX_STATUS_ERROR:    sandbox.Error,
}

func fromSandbox(s *hostv1.Sandbox) sandbox.HostSandbox {
	return sandbox.HostSandbox{
		ID: s.GetId(), Status: statuses[s.GetStatus()], Reason: s.GetReason(),
		Runtime: s.GetRuntime(), HostIP: s.GetHostIp(), GuestIP: s.GetGuestIp(),
		Template: s.GetTemplate(), Resources: fromResources(s.GetResources()),
		CreatedAt: fromTime(s.GetCreatedAt()), StartedAt: fromTime(s.GetStartedAt()),
		PausedAt: fromTime(s.GetPausedAt()), SnapshotBytes: int64(s.GetSnapshotBytes()),
	}
}

func fromResources(r *hostv1.Resources) sandbox.Resources {
	return sandbox.Resources{VCPUs: int(r.GetVcpus()), MemoryMB: int(r.GetMemoryMb()), DiskMB: int(r.GetDiskMb())}
}

// fromTime is a time as the control floor keeps it, zero when there is none.
func fromTime(t *timestamppb.Timestamp) time.Time {
	if t == nil || !t.IsValid() {
		return time.Time{}
	}
	return t.AsTime().Truncate(time.Microsecond)
}
