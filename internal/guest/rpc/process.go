package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"

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
type processService struct{ server *Server }

var _ processconnect.ProcessHandler = processService{}

// Start runs a command and sends its output until it ends. The client's going away ends
// the stream and not the command.
func (s processService) Start(ctx context.Context, req *connect.Request[processpb.StartRequest], stream *connect.ServerStream[processpb.StartResponse]) error {
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
	out := &processpb.StartResponse{}
	return sendEvents(ctx, p, sub, keepAlive(req.Header()), func(ev *processpb.ProcessEvent) error {
		out.Event = ev
		return stream.Send(out)
	})
}

// replayHeader asks Connect, when it is "true", for what is kept of the output so far
// before what is to come. The E2B SDKs know no such thing and get new output only.
const replayHeader = "Wrenn-Replay"

// replayFromHeader asks Connect for the output from a position on, so that a client whose
// connection broke goes on where that was. Its value is the bytes of stdout, or of what a
// terminal showed, and of stderr that came before, such as "4096,0". It goes before
// replayHeader, which clients send as well to have something of an older daemon.
const replayFromHeader = "Wrenn-Replay-From"

// replayBytesHeader says how many bytes of the output that follows are of before, so that
// a client knows where the news begin.
const replayBytesHeader = "Wrenn-Replay-Bytes"

// outputOffsetHeader says, as replayFromHeader does, at which position the output that
// follows begins. It is later than what was asked for when the rest is not kept any more.
const outputOffsetHeader = "Wrenn-Output-Offset"

// Connect sends the output of a process that runs, or ended lately, until it ends. The
// client's going away, or its timeout, ends the stream and not the process.
func (s processService) Connect(ctx context.Context, req *connect.Request[processpb.ConnectRequest], stream *connect.ServerStream[processpb.ConnectResponse]) error {
	sel, err := selector(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	p, err := s.server.processes.FindRecent(sel)
	if err != nil {
		return err
	}
	sub, err := subscribe(p, req.Header(), stream.ResponseHeader())
	if err != nil {
		return err
	}
	defer sub.Close()
	out := &processpb.ConnectResponse{}
	return sendEvents(ctx, p, sub, keepAlive(req.Header()), func(ev *processpb.ProcessEvent) error {
		out.Event = ev
		return stream.Send(out)
	})
}

// subscribe returns the output of a process from where the headers of a request say, and
// notes in those of the answer where that is.
func subscribe(p *process.Process, asked, answer http.Header) (*process.Subscription, error) {
	var sub *process.Subscription
	switch given := asked.Get(replayFromHeader); {
	case given != "":
		from, err := parsePosition(given)
		if err != nil {
			return nil, err
		}
		sub = p.ReplayFrom(from)
	case asked.Get(replayHeader) == "true":
		sub = p.Replay()
	default:
		sub = p.Subscribe()
	}
	answer.Set(replayBytesHeader, strconv.Itoa(sub.Replayed()))
	if at, ok := sub.Begins(); ok {
		answer.Set(outputOffsetHeader, formatPosition(at))
	}
	return sub, nil
}

func formatPosition(p process.Position) string { return fmt.Sprintf("%d,%d", p.Stdout, p.Stderr) }

func parsePosition(text string) (process.Position, error) {
	stdout, stderr, _ := strings.Cut(text, ",")
	const bits = 63 // no position is negative
	first, err := strconv.ParseUint(stdout, 10, bits)
	second, err2 := strconv.ParseUint(stderr, 10, bits)
	if err = errors.Join(err, err2); err != nil {
		return process.Position{}, fault.Wrap(err, fault.InvalidRequest,
			"the header %s must be two numbers of bytes, of stdout and stderr, such as 4096,0", replayFromHeader)
	}
	return process.Position{Stdout: int64(first), Stderr: int64(second)}, nil
}

// spec turns a request into what is to be run.
func (s processService) spec(ctx context.Context, msg *processpb.StartRequest, user identity.User) (process.Spec, error) {
	config := msg.GetProcess()
	if config == nil {
		config = &processpb.ProcessConfig{}
	}
	size, err := terminalSize(msg.GetPty())
	if err != nil {
		return process.Spec{}, err
	}
	if err := identity.CheckEnv(config.GetEnvs()); err != nil {
		return process.Spec{}, err
	}
	dir, err := s.workingDir(config, user)
	if err != nil {
		return process.Spec{}, err
	}
	spec := process.Spec{
		Cmd:  config.GetCmd(),
		Args: config.GetArgs(),
		Env:  s.server.identity.Environment(s.server.path, user, config.GetEnvs()),
		Dir:  dir,
		User: process.User{Name: user.Name, UID: user.UID, GID: user.GID, Groups: user.Groups},
		// Clients of old know no such field and expect a stdin.
		Stdin:     msg.Stdin == nil || msg.GetStdin(),
		Terminal:  size,
		Tag:       msg.Tag,
		Limit:     limitOf(ctx),
		Requested: process.Requested{Envs: config.GetEnvs(), Dir: config.Cwd},
		// A terminal that is merely open makes no sandbox active.
		Background: msg.GetBackground() || size != nil,
	}
	if size != nil {
		asTerminal(&spec, user)
	}
	return spec, nil
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
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return "/", nil
	}
	return dir, nil
}

// List returns the running processes.
func (s processService) List(context.Context, *connect.Request[processpb.ListRequest]) (*connect.Response[processpb.ListResponse], error) {
	out := &processpb.ListResponse{}
	for _, p := range s.server.processes.List() {
		spec := p.Spec()
		out.Processes = append(out.Processes, &processpb.ProcessInfo{
			Pid: uint32(p.PID()),
			Tag: spec.Tag, Background: spec.Background,
			Config: &processpb.ProcessConfig{
				Cmd: spec.Cmd, Args: spec.Args, Envs: spec.Requested.Envs, Cwd: spec.Requested.Dir,
			},
		})
	}
	return connect.NewResponse(out), nil
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

// find returns a running process.
func (s processService) find(named *processpb.ProcessSelector) (*process.Process, error) {
	sel, err := selector(named)
	if err != nil {
		return nil, err
	}
	return s.server.processes.Find(sel)
}

func selector(named *processpb.ProcessSelector) (process.Selector, error) {
	switch sel := named.GetSelector().(type) {
	case *processpb.ProcessSelector_Pid:
		return process.Selector{PID: int(sel.Pid)}, nil
	case *processpb.ProcessSelector_Tag:
		return process.Selector{Tag: &sel.Tag}, nil
	}
	return process.Selector{}, fault.New(fault.InvalidRequest, "the request names no process; give a pid or a tag")
}
