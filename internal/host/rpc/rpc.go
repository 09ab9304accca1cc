// Package rpc is the host agent's edge: it serves the host contract (proto/host/v1) and
// translates between it and the sandbox lifecycle and guest client. It decides nothing.
package rpc

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/metering"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// Sandboxes is the lifecycle that the host serves.
type Sandboxes interface {
	Create(ctx context.Context, req sandbox.CreateRequest) (sandbox.Sandbox, error)
	Pause(ctx context.Context, id string) (sandbox.Sandbox, error)
	Resume(ctx context.Context, id string, wait time.Duration) (sandbox.Sandbox, error)
	Get(id string) (sandbox.Sandbox, error)
	Destroy(ctx context.Context, id string) error
	Watch(ctx context.Context, sandbox func(sandbox.Sandbox) error, synced func() error) error
	Guest(id string) (*guestclient.Client, error)
}

// Snapshots is what is made of sandboxes that go on: copies, and what others are made from.
type Snapshots interface {
	Fork(ctx context.Context, id string, copies []string) ([]sandbox.Sandbox, error)
	Create(ctx context.Context, sandboxID, id string) (snapshot.Snapshot, error)
	List() []snapshot.Snapshot
	Delete(ctx context.Context, id string) error
	SetWarm(ctx context.Context, all []sandbox.Warm) error
}

// Host is what the machine is, and what is used of it.
type Host interface {
	Metrics(id string, d time.Duration) ([]metering.Point, error)
	Max() sandbox.Resources
	Runtime() string
	Templates() ([]string, error)
}

// Config is what a server needs.
type Config struct {
	HostID    string
	Host      Host
	Sandboxes Sandboxes
	Snapshots Snapshots
	Log       *slog.Logger
}

// server implements the host service. It is stateless and safe for concurrent use.
type server struct {
	Config
	hostname string
}

var _ hostv1connect.HostServiceHandler = (*server)(nil)

// New returns the handler of the whole host contract: its RPCs and its file paths.
func New(cfg Config) (http.Handler, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	s := &server{Config: cfg, hostname: hostname}
	mux := http.NewServeMux()
	mux.Handle(hostv1connect.NewHostServiceHandler(s, connect.WithInterceptors(fault.Interceptor(), errorLog{cfg.Log})))
	mux.HandleFunc("GET "+hostv1.FilesPath, s.fileHandler(s.readFile))
	mux.HandleFunc("POST "+hostv1.FilesPath, s.fileHandler(s.writeFile))
	return mux, nil
}

func (s *server) GetHost(context.Context, *connect.Request[hostv1.GetHostRequest]) (*connect.Response[hostv1.GetHostResponse], error) {
	templates, err := s.Host.Templates()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.GetHostResponse{
		HostId: s.HostID, Hostname: s.hostname, Runtime: s.Host.Runtime(),
		MaxResources: toResources(s.Host.Max()), Templates: templates,
	}), nil
}

func (s *server) CreateSandbox(ctx context.Context, req *connect.Request[hostv1.CreateSandboxRequest]) (*connect.Response[hostv1.CreateSandboxResponse], error) {
	m := req.Msg
	wait, err := fromMillis(m.GetWaitMs())
	if err != nil {
		return nil, err
	}
	sb, err := s.Sandboxes.Create(ctx, sandbox.CreateRequest{
		ID: m.GetId(), Template: m.GetTemplate(), Env: m.GetEnv(), DefaultUser: m.GetDefaultUser(),
		Snapshot: m.GetSnapshotId(), Wait: wait,
		Resources: sandbox.Resources{
			VCPUs:    int(m.GetResources().GetVcpus()),
			MemoryMB: int(m.GetResources().GetMemoryMb()),
			DiskMB:   int(m.GetResources().GetDiskMb()),
		},
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.CreateSandboxResponse{Sandbox: toSandbox(sb)}), nil
}

func (s *server) GetSandbox(_ context.Context, req *connect.Request[hostv1.GetSandboxRequest]) (*connect.Response[hostv1.GetSandboxResponse], error) {
	sb, err := s.Sandboxes.Get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.GetSandboxResponse{Sandbox: toSandbox(sb)}), nil
}

func (s *server) DestroySandbox(ctx context.Context, req *connect.Request[hostv1.DestroySandboxRequest]) (*connect.Response[hostv1.DestroySandboxResponse], error) {
	if err := s.Sandboxes.Destroy(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.DestroySandboxResponse{}), nil
}

func (s *server) WatchSandboxes(ctx context.Context, _ *connect.Request[hostv1.WatchSandboxesRequest], stream *connect.ServerStream[hostv1.WatchSandboxesResponse]) error {
	return s.Sandboxes.Watch(ctx,
		func(sb sandbox.Sandbox) error {
			return stream.Send(&hostv1.WatchSandboxesResponse{Event: &hostv1.WatchSandboxesResponse_Sandbox{Sandbox: toSandbox(sb)}})
		},
		func() error {
			return stream.Send(&hostv1.WatchSandboxesResponse{
				Event: &hostv1.WatchSandboxesResponse_Synced_{Synced: &hostv1.WatchSandboxesResponse_Synced{}},
			})
		})
}

var toStatus = map[sandbox.Status]hostv1.SandboxStatus{
	sandbox.Starting: hostv1.SandboxStatus_SANDBOX_STATUS_STARTING,
	sandbox.Running:  hostv1.SandboxStatus_SANDBOX_STATUS_RUNNING,
	sandbox.Pausing:  hostv1.SandboxStatus_SANDBOX_STATUS_PAUSING,
	sandbox.Paused:   hostv1.SandboxStatus_SANDBOX_STATUS_PAUSED,
	sandbox.Resuming: hostv1.SandboxStatus_SANDBOX_STATUS_RESUMING,
	sandbox.Stopping: hostv1.SandboxStatus_SANDBOX_STATUS_STOPPING,
	sandbox.Stopped:  hostv1.SandboxStatus_SANDBOX_STATUS_STOPPED,
	sandbox.Failed:   hostv1.SandboxStatus_SANDBOX_STATUS_ERROR,
}

func toSandbox(sb sandbox.Sandbox) *hostv1.Sandbox {
	return &hostv1.Sandbox{
		Id: sb.ID, Status: toStatus[sb.Status], Template: sb.Template, Resources: toResources(sb.Resources),
		Runtime: sb.Runtime, HostIp: sb.HostIP, GuestIp: sb.GuestIP, Reason: sb.Reason,
		CreatedAt: toTime(sb.CreatedAt), StartedAt: toTime(sb.StartedAt), LastActiveAt: toTime(sb.LastActiveAt),
		PausedAt: toTime(sb.PausedAt), SnapshotBytes: uint64(sb.SnapshotBytes),
	}
}

// toTime leaves a time that has not come unset.
func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func toResources(r sandbox.Resources) *hostv1.Resources {
	return &hostv1.Resources{Vcpus: uint32(r.VCPUs), MemoryMb: uint32(r.MemoryMB), DiskMb: uint32(r.DiskMB)}
}

// errorLog logs what went wrong inside, once, at this boundary: not what the caller did
// wrong, and not that it went away. It must see errors before they are mapped.
type errorLog struct{ log *slog.Logger }

func (l errorLog) report(ctx context.Context, procedure string, err error) {
	switch fault.CodeOf(err) {
	case fault.Internal, fault.AgentError, fault.HostUnavailable, fault.DeadlineExceeded:
		l.log.ErrorContext(ctx, "host rpc failed", "procedure", procedure, "error", err)
	}
}

func (l errorLog) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		l.report(ctx, req.Spec().Procedure, err)
		return resp, err
	}
}

func (l errorLog) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, conn)
		l.report(ctx, conn.Spec().Procedure, err)
		return err
	}
}

func (errorLog) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}
