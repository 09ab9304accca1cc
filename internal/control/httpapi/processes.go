package httpapi

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// processHandlers is the API of commands, but for the WebSocket.
type processHandlers struct{ processes Processes }

// Exec implements api.StrictServerInterface.
func (h processHandlers) Exec(ctx context.Context, req api.ExecRequestObject) (api.ExecResponseObject, error) {
	body := req.Body
	cmd := sandbox.Command{
		Cmd: body.Cmd, Args: body.Args, Env: body.Envs, Cwd: body.Cwd, User: body.User, Tag: body.Tag,
	}
	switch {
	case body.TimeoutSec != nil:
		cmd.Timeout = seconds(*body.TimeoutSec)
	case !body.Background:
		cmd.Timeout = sandbox.DefaultExecTimeout
	}
	if body.Background {
		started, err := h.processes.Background(ctx, req.ID, cmd)
		if err != nil {
			return nil, err
		}
		return api.Exec202JSONResponse{SandboxID: req.ID, Cmd: body.Cmd, Pid: int64(started.PID), Tag: started.Tag}, nil
	}
	res, err := h.processes.Exec(ctx, req.ID, cmd, []byte(body.Stdin))
	if err != nil {
		return nil, err
	}
	out := api.Exec200JSONResponse{
		SandboxID: req.ID, Cmd: body.Cmd,
		ExitCode: res.Code, Signal: res.Signal, TimedOut: res.TimedOut,
		DurationMs: res.Duration.Milliseconds(), Truncated: res.Truncated,
	}
	if utf8.Valid(res.Stdout) && utf8.Valid(res.Stderr) {
		out.Encoding, out.Stdout, out.Stderr = api.UTF8, string(res.Stdout), string(res.Stderr)
	} else {
		out.Encoding = api.Base64
		out.Stdout = base64.StdEncoding.EncodeToString(res.Stdout)
		out.Stderr = base64.StdEncoding.EncodeToString(res.Stderr)
	}
	return out, nil
}

// ListProcesses implements api.StrictServerInterface.
func (h processHandlers) ListProcesses(ctx context.Context, req api.ListProcessesRequestObject) (api.ListProcessesResponseObject, error) {
	found, err := h.processes.List(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	out := api.ListProcesses200JSONResponse{Processes: make([]api.Process, len(found))}
	for i, p := range found {
		out.Processes[i] = api.Process{Pid: int64(p.PID), Tag: p.Tag, Cmd: p.Cmd, Args: append([]string{}, p.Args...)}
	}
	return out, nil
}

// SignalProcess implements api.StrictServerInterface.
func (h processHandlers) SignalProcess(ctx context.Context, req api.SignalProcessRequestObject) (api.SignalProcessResponseObject, error) {
	sig := sandbox.SIGKILL
	if req.Params.Signal != "" {
		sig = sandbox.Signal(req.Params.Signal)
	}
	if err := h.processes.Signal(ctx, req.ID, selector(req.Process), sig); err != nil {
		return nil, err
	}
	return api.SignalProcess204Response{}, nil
}

// selector reads a pid or a tag. Digits that are no pid are looked for as a tag, which
// is not found.
func selector(s string) sandbox.Selector {
	if strings.Trim(s, "0123456789") == "" {
		if pid, err := strconv.ParseUint(s, 10, 32); err == nil && pid > 0 {
			return sandbox.Selector{PID: uint32(pid)}
		}
	}
	return sandbox.Selector{Tag: s}
}
