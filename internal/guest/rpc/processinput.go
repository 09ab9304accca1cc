package rpc

import (
	"context"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/process"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// SendInput writes to a process's stdin or types into its terminal.
func (s processService) SendInput(ctx context.Context, req *connect.Request[processpb.SendInputRequest]) (*connect.Response[processpb.SendInputResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := writeInput(ctx, p, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&processpb.SendInputResponse{}), nil
}

// StreamInput does what SendInput does for every message of a stream whose first message
// names the process. The stream's end leaves the process's stdin open.
func (s processService) StreamInput(ctx context.Context, stream *connect.ClientStream[processpb.StreamInputRequest]) (*connect.Response[processpb.StreamInputResponse], error) {
	var p *process.Process
	for stream.Receive() {
		var err error
		switch event := stream.Msg().GetEvent().(type) {
		case *processpb.StreamInputRequest_Start:
			if p != nil {
				return nil, fault.New(fault.InvalidRequest, "the stream names a process twice; open another for another process")
			}
			p, err = s.find(event.Start.GetProcess())
		case *processpb.StreamInputRequest_Data:
			if p == nil {
				return nil, fault.New(fault.InvalidRequest, "the first message of the stream must be start, which names the process")
			}
			err = writeInput(ctx, p, event.Data.GetInput())
		case *processpb.StreamInputRequest_Keepalive:
		default:
			err = fault.New(fault.InvalidRequest, "a message of the stream has no event")
		}
		if err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&processpb.StreamInputResponse{}), nil
}

func writeInput(ctx context.Context, p *process.Process, in *processpb.ProcessInput) error {
	switch input := in.GetInput().(type) {
	case *processpb.ProcessInput_Stdin:
		return p.WriteStdin(ctx, input.Stdin)
	case *processpb.ProcessInput_Pty:
		return p.WriteTerminal(ctx, input.Pty)
	}
	return fault.New(fault.InvalidRequest, "the request has no input; give stdin or pty")
}

// CloseStdin ends a process's input.
func (s processService) CloseStdin(_ context.Context, req *connect.Request[processpb.CloseStdinRequest]) (*connect.Response[processpb.CloseStdinResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.CloseStdin(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&processpb.CloseStdinResponse{}), nil
}
