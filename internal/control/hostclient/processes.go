package hostclient

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// Processes implements sandbox.HostProcesses.
type Processes struct {
	rpc hostv1connect.HostServiceClient
}

var _ sandbox.HostProcesses = (*Processes)(nil)

// Start implements sandbox.HostProcesses.
func (p *Processes) Start(ctx context.Context, id string, cmd sandbox.Command) (sandbox.Started, sandbox.EventStream, error) {
	req := &hostv1.StartProcessRequest{
		SandboxId: id, Cmd: cmd.Cmd, Args: cmd.Args, Envs: cmd.Env, Cwd: cmd.Cwd, User: cmd.User, Tag: cmd.Tag,
		TimeoutMs: uint64(cmd.Timeout / time.Millisecond), Stdin: cmd.Stdin,
		Background: cmd.Background,
	}
	if cmd.Terminal != nil {
		req.Terminal = terminalSize(*cmd.Terminal)
	}
	stream, err := p.rpc.StartProcess(ctx, connect.NewRequest(req))
	if err != nil {
		return sandbox.Started{}, nil, err
	}
	return follow(stream)
}

// Connect implements sandbox.HostProcesses.
func (p *Processes) Connect(ctx context.Context, id string, f sandbox.Follow) (sandbox.Started, sandbox.EventStream, error) {
	req := &hostv1.ConnectProcessRequest{SandboxId: id, Process: selector(f.Process), Replay: f.Replay}
	if f.From != nil {
		req.From = &hostv1.OutputOffset{Stdout: f.From.Stdout, Stderr: f.From.Stderr}
	}
	stream, err := p.rpc.ConnectProcess(ctx, connect.NewRequest(req))
	if err != nil {
		return sandbox.Started{}, nil, err
	}
	return follow(stream)
}

// follow reads the first event, which says that the process runs.
func follow(stream *connect.ServerStreamForClient[hostv1.ProcessEvent]) (sandbox.Started, sandbox.EventStream, error) {
	events := &eventStream{stream}
	if !stream.Receive() {
		_ = stream.Close()
		return sandbox.Started{}, nil, events.end()
	}
	start := stream.Msg().GetStart()
	if start == nil {
		_ = stream.Close()
		return sandbox.Started{}, nil, fault.New(fault.AgentError, "the host agent did not say that the command has started")
	}
	started := sandbox.Started{PID: start.GetPid(), ReplayBytes: start.GetReplayBytes()}
	if at := start.GetOffset(); at != nil {
		started.Offset = &sandbox.Offset{Stdout: at.GetStdout(), Stderr: at.GetStderr()}
	}
	return started, events, nil
}

type eventStream struct {
	stream *connect.ServerStreamForClient[hostv1.ProcessEvent]
}

func (e *eventStream) Next() (sandbox.Event, error) {
	for e.stream.Receive() {
		switch ev := e.stream.Msg().GetEvent().(type) {
		case *hostv1.ProcessEvent_Stdout:
			return sandbox.Event{Kind: sandbox.Stdout, Data: ev.Stdout}, nil
		case *hostv1.ProcessEvent_Stderr:
			return sandbox.Event{Kind: sandbox.Stderr, Data: ev.Stderr}, nil
		case *hostv1.ProcessEvent_Terminal:
			return sandbox.Event{Kind: sandbox.Terminal, Data: ev.Terminal}, nil
		case *hostv1.ProcessEvent_End_:
			return sandbox.Event{Kind: sandbox.Exited, Exit: sandbox.Exit{
				Code: ev.End.GetExitCode(), Signal: ev.End.GetSignal(), TimedOut: ev.End.GetTimedOut(),
			}}, nil
		}
	}
	return sandbox.Event{}, e.end()
}

// end is the error with which the stream ended, io.EOF when it had none.
func (e *eventStream) end() error {
	if err := e.stream.Err(); err != nil {
		return err
	}
	return io.EOF
}

func (e *eventStream) Close() error { return e.stream.Close() }

// List implements sandbox.HostProcesses.
func (p *Processes) List(ctx context.Context, id string) ([]sandbox.Process, error) {
	resp, err := p.rpc.ListProcesses(ctx, connect.NewRequest(&hostv1.ListProcessesRequest{SandboxId: id}))
	if err != nil {
		return nil, err
	}
	found := make([]sandbox.Process, 0, len(resp.Msg.GetProcesses()))
	for _, p := range resp.Msg.GetProcesses() {
		found = append(found, sandbox.Process{
			PID: p.GetPid(), Tag: p.GetTag(), Cmd: p.GetCmd(), Args: p.GetArgs(), Background: p.GetBackground(),
		})
	}
	return found, nil
}

// SendInput implements sandbox.HostProcesses.
func (p *Processes) SendInput(ctx context.Context, id string, sel sandbox.Selector, in sandbox.Input) error {
	req := &hostv1.SendInputRequest{SandboxId: id, Process: selector(sel), Input: &hostv1.SendInputRequest_Stdin{Stdin: in.Data}}
	if in.Terminal {
		req.Input = &hostv1.SendInputRequest_Terminal{Terminal: in.Data}
	}
	_, err := p.rpc.SendInput(ctx, connect.NewRequest(req))
	return err
}

// CloseStdin implements sandbox.HostProcesses.
func (p *Processes) CloseStdin(ctx context.Context, id string, sel sandbox.Selector) error {
	_, err := p.rpc.CloseStdin(ctx, connect.NewRequest(&hostv1.CloseStdinRequest{SandboxId: id, Process: selector(sel)}))
	return err
}

// Signal implements sandbox.HostProcesses.
func (p *Processes) Signal(ctx context.Context, id string, sel sandbox.Selector, sig sandbox.Signal) error {
	num := hostv1.Signal_SIGNAL_SIGKILL
	if sig == sandbox.SIGTERM {
		num = hostv1.Signal_SIGNAL_SIGTERM
	}
	_, err := p.rpc.SignalProcess(ctx, connect.NewRequest(&hostv1.SignalProcessRequest{SandboxId: id, Process: selector(sel), Signal: num}))
	return err
}

// Resize implements sandbox.HostProcesses.
func (p *Processes) Resize(ctx context.Context, id string, sel sandbox.Selector, size sandbox.TerminalSize) error {
	_, err := p.rpc.ResizeTerminal(ctx, connect.NewRequest(&hostv1.ResizeTerminalRequest{
		SandboxId: id, Process: selector(sel), Size: terminalSize(size),
	}))
	return err
}

func terminalSize(s sandbox.TerminalSize) *hostv1.TerminalSize {
	return &hostv1.TerminalSize{Cols: uint32(s.Cols), Rows: uint32(s.Rows)}
}

func selector(s sandbox.Selector) *hostv1.ProcessSelector {
	if s.PID != 0 {
		return &hostv1.ProcessSelector{Selector: &hostv1.ProcessSelector_Pid{Pid: s.PID}}
	}
	return &hostv1.ProcessSelector{Selector: &hostv1.ProcessSelector_Tag{Tag: s.Tag}}
}
