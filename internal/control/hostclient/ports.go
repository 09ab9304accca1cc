package hostclient

import (
	"context"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// Ports implements sandbox.HostPorts.
type Ports struct {
	rpc hostv1connect.HostServiceClient
}

var _ sandbox.HostPorts = (*Ports)(nil)

// List implements sandbox.HostPorts.
func (p *Ports) List(ctx context.Context, id string) ([]sandbox.Listening, error) {
	resp, err := p.rpc.ListPorts(ctx, connect.NewRequest(&hostv1.ListPortsRequest{SandboxId: id}))
	if err != nil {
		return nil, err
	}
	found := make([]sandbox.Listening, len(resp.Msg.GetPorts()))
	for i, l := range resp.Msg.GetPorts() {
		found[i] = sandbox.Listening{Port: int(l.GetPort()), Address: l.GetAddress(), PID: l.GetPid(), Process: l.GetProcess()}
	}
	return found, nil
}
