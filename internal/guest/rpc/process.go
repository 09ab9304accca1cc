package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/internal/guest/process"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// processService is the Connect service process.Process.
type processService struct {
	processconnect.UnimplementedProcessHandler
	server *Server
}

// Start runs a command and sends its output until it ends. The client's going away ends
// the stream and not the command.
func (s processService) Start(ctx context.Context, req *connect.Request[processpb.StartRequest], stream *connect.ServerStream[processpb.StartResponse]) error {
	if req.Msg.GetPty() != nil {
		return fault.New(fault.NotImplemented, "terminals are not supported by this version")
	}
	user, err := s.server.user(req.Header())
	if err != nil {
		return err
	}
	spec, err := s.spec(ctx, req.Msg, user)
	if err != nil {
		return err
	}
	p, sub, err := s.server.processes.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer sub.Close()

	out := &processpb.StartResponse{Event: &processpb.ProcessEvent{
		Event: &processpb.ProcessEvent_Start{Start: &processpb.ProcessEvent_StartEvent{Pid: uint32(p.PID())}},
	}}
	if err := stream.Send(out); err != nil {
		return clientGone(err)
	}
	return sendEvents(ctx, sub, spec.Limit, keepAlive(req.Header()), func(ev *processpb.ProcessEvent) error {
		out.Event = ev
		return stream.Send(out)
	})
}

// spec turns a request into what is to be run.
func (s processService) spec(ctx context.Context, msg *processpb.StartRequest, user identity.User) (process.Spec, error) {
	config := msg.GetProcess()
	if config == nil {
		config = &processpb.ProcessConfig{}
	}
	if err := identity.CheckEnv(config.GetEnvs()); err != nil {
		return process.Spec{}, err
	}
	dir, err := s.workingDir(config, user)
	if err != nil {
		return process.Spec{}, err
	}
	return process.Spec{
		Cmd:  config.GetCmd(),
		Args: config.GetArgs(),
		Env:  s.server.identity.Environment(s.server.path, user, config.GetEnvs()),
		Dir:  dir,
		User: process.User{Name: user.Name, UID: user.UID, GID: user.GID, Groups: user.Groups},
		// Clients of old know no such field and expect a stdin.
		Stdin:     msg.Stdin == nil || msg.GetStdin(),
		Tag:       msg.Tag,
		Limit:     limitOf(ctx),
		Requested: process.Requested{Envs: config.GetEnvs(), Dir: config.Cwd},
	}, nil
}

// workingDir returns where a process is to start. A home that nobody made, as the accounts
// of services have, is no reason to refuse a command that asked for no place: it starts at
// the root, as after a login.
func (s processService) workingDir(config *processpb.ProcessConfig, user identity.User) (string, error) {
	workdir := s.server.identity.Workdir()
	dir, err := filesystem.Resolve(config.GetCwd(), user.Home, workdir)
	if err != nil || config.GetCwd() != "" || workdir != "" {
		return dir, err
	}
	if _, err := s.server.files.Stat(dir); fault.Is(err, fault.NotFound) {
		return "/", nil
	}
	return dir, nil
}

// defaultKeepAlive is how long a stream may be silent unless its client says otherwise.
const defaultKeepAlive = 90 * time.Second

func keepAlive(header http.Header) time.Duration {
	seconds, err := strconv.ParseUint(header.Get("Keepalive-Ping-Interval"), 10, 31)
	if err != nil || seconds == 0 {
		return defaultKeepAlive
	}
	return time.Duration(seconds) * time.Second
}

// sendEvents sends what sub brings until the process has ended. The events passed to send
// are used again for the next.
func sendEvents(ctx context.Context, sub *process.Subscription, limit, idle time.Duration, send func(*processpb.ProcessEvent) error) error {
	stdout, stderr := &processpb.ProcessEvent_DataEvent_Stdout{}, &processpb.ProcessEvent_DataEvent_Stderr{}
	data := &processpb.ProcessEvent_DataEvent{}
	msg := &processpb.ProcessEvent{}
	for {
		ev, err := sub.Next(ctx, idle)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch ev.Kind {
		case process.Stdout:
			stdout.Stdout, data.Output = ev.Data, stdout
			msg.Event = &processpb.ProcessEvent_Data{Data: data}
		case process.Stderr:
			stderr.Stderr, data.Output = ev.Data, stderr
			msg.Event = &processpb.ProcessEvent_Data{Data: data}
		case process.Idle:
			msg.Event = &processpb.ProcessEvent_Keepalive{Keepalive: &processpb.ProcessEvent_KeepAlive{}}
		case process.Ended:
			if ev.End.TimedOut {
				return fault.New(fault.DeadlineExceeded,
					"the command did not finish within %d ms and was killed", limit.Milliseconds())
			}
			msg.Event = endEvent(ev.End)
		}
		err = send(msg)
		ev.Release()
		if err != nil {
			return clientGone(err)
		}
	}
}

func endEvent(end process.End) *processpb.ProcessEvent_End {
	out := &processpb.ProcessEvent_EndEvent{ExitCode: int32(end.ExitCode), Exited: end.Exited, Status: end.Status}
	if !end.Exited || end.ExitCode != 0 {
		out.Error = &end.Status
	}
	return &processpb.ProcessEvent_End{End: out}
}

// clientGone is what an error of sending means: the client cannot hear of it any more.
func clientGone(err error) error {
	return fault.Wrap(err, fault.Canceled, "the client went away")
}

// List returns the running processes.
func (s processService) List(context.Context, *connect.Request[processpb.ListRequest]) (*connect.Response[processpb.ListResponse], error) {
	out := &processpb.ListResponse{}
	for _, p := range s.server.processes.List() {
		spec := p.Spec()
		out.Processes = append(out.Processes, &processpb.ProcessInfo{
			Pid: uint32(p.PID()),
			Tag: spec.Tag,
			Config: &processpb.ProcessConfig{
				Cmd: spec.Cmd, Args: spec.Args, Envs: spec.Requested.Envs, Cwd: spec.Requested.Dir,
			},
		})
	}
	return connect.NewResponse(out), nil
}

// SendInput writes to a process's stdin.
func (s processService) SendInput(ctx context.Context, req *connect.Request[processpb.SendInputRequest]) (*connect.Response[processpb.SendInputResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	switch input := req.Msg.GetInput().GetInput().(type) {
	case *processpb.ProcessInput_Stdin:
		err = p.WriteStdin(ctx, input.Stdin)
	case *processpb.ProcessInput_Pty:
		err = fault.New(fault.Internal, "process %d has no terminal; send the input as stdin", p.PID())
	default:
		err = fault.New(fault.InvalidRequest, "the request has no input")
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&processpb.SendInputResponse{}), nil
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

// SendSignal signals a process and its group.
func (s processService) SendSignal(_ context.Context, req *connect.Request[processpb.SendSignalRequest]) (*connect.Response[processpb.SendSignalResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	switch req.Msg.GetSignal() {
	case processpb.Signal_SIGNAL_SIGKILL:
		err = p.Signal(unix.SIGKILL)
	case processpb.Signal_SIGNAL_SIGTERM:
		err = p.Signal(unix.SIGTERM)
	default:
		err = fault.New(fault.NotImplemented, "signal %s is not supported; use SIGKILL or SIGTERM", req.Msg.GetSignal())
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&processpb.SendSignalResponse{}), nil
}

func (s processService) find(selector *processpb.ProcessSelector) (*process.Process, error) {
	switch sel := selector.GetSelector().(type) {
	case *processpb.ProcessSelector_Pid:
		return s.server.processes.Find(process.Selector{PID: int(sel.Pid)})
	case *processpb.ProcessSelector_Tag:
		return s.server.processes.Find(process.Selector{Tag: &sel.Tag})
	}
	return nil, fault.New(fault.InvalidRequest, "the request names no process; give a pid or a tag")
}
