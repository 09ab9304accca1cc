package rpc

import (
	"context"

	"connectrpc.com/connect"

	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
)

func (s *server) ListPorts(ctx context.Context, req *connect.Request[hostv1.ListPortsRequest]) (*connect.Response[hostv1.ListPortsResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	ports, err := guest.Ports(ctx)
	if err != nil {
		return nil, err
	}
	resp := &hostv1.ListPortsResponse{}
	for _, p := range ports {
		resp.Ports = append(resp.Ports, &hostv1.Port{
			Port: uint32(p.Port), Address: p.Address, Pid: p.PID, Process: p.Process, Forwarded: p.Forwarded,
		})
	}
	return connect.NewResponse(resp), nil
}
