package rpc

import (
	"context"
	"math"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/internal/guest/process"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// defaultTerm is the type of a terminal whose client names none: what nearly all of them
// understand.
const defaultTerm = "TERM=xterm-256color"

// Update resizes a process's terminal. Without a size there is nothing to do.
func (s processService) Update(_ context.Context, req *connect.Request[processpb.UpdateRequest]) (*connect.Response[processpb.UpdateResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	size, err := terminalSize(req.Msg.GetPty())
	if err != nil {
		return nil, err
	}
	if size != nil {
		if err := p.Resize(*size); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&processpb.UpdateResponse{}), nil
}

// terminalSize returns the size that is asked for, nil when no terminal is.
func terminalSize(pty *processpb.PTY) (*process.Size, error) {
	if pty == nil {
		return nil, nil
	}
	cols, rows := pty.GetSize().GetCols(), pty.GetSize().GetRows()
	if cols > math.MaxUint16 || rows > math.MaxUint16 {
		return nil, fault.New(fault.InvalidRequest, "a terminal of %d columns and %d rows is too large; at most %d are possible",
			cols, rows, math.MaxUint16)
	}
	return &process.Size{Cols: uint16(cols), Rows: uint16(rows)}, nil
}

// asTerminal completes what is to run in a terminal: without a command it is the user's
// login shell, and there is always a TERM.
func asTerminal(spec *process.Spec, user identity.User) {
	if spec.Cmd == "" {
		spec.Cmd, spec.Args = user.Shell, []string{"-i", "-l"}
	}
	if !slices.ContainsFunc(spec.Env, func(pair string) bool { return strings.HasPrefix(pair, "TERM=") }) {
		spec.Env = append(spec.Env, defaultTerm)
	}
}
