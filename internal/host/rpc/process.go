package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
)

func (s *server) StartProcess(ctx context.Context, req *connect.Request[hostv1.StartProcessRequest], stream *connect.ServerStream[hostv1.ProcessEvent]) error {
	m := req.Msg
	guest, err := s.Sandboxes.Guest(m.GetSandboxId())
	if err != nil {
		return err
	}
	cmd := guestclient.Command{
		Cmd: m.GetCmd(), Args: m.GetArgs(), Env: m.GetEnvs(), Cwd: m.GetCwd(), User: m.GetUser(), Tag: m.GetTag(),
		Timeout: time.Duration(m.GetTimeoutMs()) * time.Millisecond, Stdin: m.GetStdin(), Background: m.GetBackground(),
	}
	if m.GetTerminal() != nil {
		size := fromTerminalSize(m.GetTerminal())
		cmd.Terminal = &size
	}
	return guest.Start(ctx, cmd, func(e guestclient.Event) error { return stream.Send(toProcessEvent(e)) })
}

func (s *server) ConnectProcess(ctx context.Context, req *connect.Request[hostv1.ConnectProcessRequest], stream *connect.ServerStream[hostv1.ProcessEvent]) error {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return err
	}
	replay := guestclient.Replay{Kept: req.Msg.GetReplay()}
	if from := req.Msg.GetFrom(); from != nil {
		replay.From = &guestclient.Offset{Stdout: from.GetStdout(), Stderr: from.GetStderr()}
	}
	return guest.Connect(ctx, fromSelector(req.Msg.GetProcess()), replay, func(e guestclient.Event) error {
		return stream.Send(toProcessEvent(e))
	})
}

func toProcessEvent(e guestclient.Event) *hostv1.ProcessEvent {
	switch e := e.(type) {
	case guestclient.Started:
		start := &hostv1.ProcessEvent_Start{Pid: e.PID, ReplayBytes: e.ReplayBytes}
		if e.Offset != nil {
			start.Offset = &hostv1.OutputOffset{Stdout: e.Offset.Stdout, Stderr: e.Offset.Stderr}
		}
		return &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Start_{Start: start}}
	case guestclient.Output:
		switch e.From {
		case guestclient.Stderr:
			return &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Stderr{Stderr: e.Data}}
		case guestclient.Terminal:
			return &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Terminal{Terminal: e.Data}}
		}
		return &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Stdout{Stdout: e.Data}}
	case guestclient.Ended:
		return &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_End_{End: &hostv1.ProcessEvent_End{
			ExitCode: e.ExitCode, Signal: e.Signal, TimedOut: e.TimedOut,
		}}}
	}
	return &hostv1.ProcessEvent{}
}

func (s *server) ListProcesses(ctx context.Context, req *connect.Request[hostv1.ListProcessesRequest]) (*connect.Response[hostv1.ListProcessesResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	processes, err := guest.Processes(ctx)
	if err != nil {
		return nil, err
	}
	resp := &hostv1.ListProcessesResponse{}
	for _, p := range processes {
		resp.Processes = append(resp.Processes, &hostv1.Process{
			Pid: p.PID, Tag: p.Tag, Cmd: p.Cmd, Args: p.Args, Background: p.Background,
		})
	}
	return connect.NewResponse(resp), nil
}

func (s *server) SendInput(ctx context.Context, req *connect.Request[hostv1.SendInputRequest]) (*connect.Response[hostv1.SendInputResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	process := fromSelector(req.Msg.GetProcess())
	switch in := req.Msg.GetInput().(type) {
	case *hostv1.SendInputRequest_Stdin:
		err = guest.SendInput(ctx, process, in.Stdin)
	case *hostv1.SendInputRequest_Terminal:
		err = guest.SendTerminalInput(ctx, process, in.Terminal)
	default:
		err = fault.New(fault.InvalidRequest, "the input must be for stdin or for a terminal")
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.SendInputResponse{}), nil
}

func (s *server) CloseStdin(ctx context.Context, req *connect.Request[hostv1.CloseStdinRequest]) (*connect.Response[hostv1.CloseStdinResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if err := guest.CloseStdin(ctx, fromSelector(req.Msg.GetProcess())); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.CloseStdinResponse{}), nil
}

func (s *server) SignalProcess(ctx context.Context, req *connect.Request[hostv1.SignalProcessRequest]) (*connect.Response[hostv1.SignalProcessResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	var kill bool
	switch req.Msg.GetSignal() {
	case hostv1.Signal_SIGNAL_SIGKILL:
		kill = true
	case hostv1.Signal_SIGNAL_SIGTERM:
	default:
		return nil, fault.New(fault.InvalidRequest, "signal must be SIGKILL or SIGTERM")
	}
	if err := guest.Signal(ctx, fromSelector(req.Msg.GetProcess()), kill); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.SignalProcessResponse{}), nil
}

func (s *server) ResizeTerminal(ctx context.Context, req *connect.Request[hostv1.ResizeTerminalRequest]) (*connect.Response[hostv1.ResizeTerminalResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	err = guest.ResizeTerminal(ctx, fromSelector(req.Msg.GetProcess()), fromTerminalSize(req.Msg.GetSize()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.ResizeTerminalResponse{}), nil
}

func fromTerminalSize(s *hostv1.TerminalSize) guestclient.TerminalSize {
	return guestclient.TerminalSize{Cols: s.GetCols(), Rows: s.GetRows()}
}

func fromSelector(s *hostv1.ProcessSelector) guestclient.Selector {
	return guestclient.Selector{PID: s.GetPid(), Tag: s.GetTag()}
}
