package guestclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// processes is the part of Client that is about processes.
type processes struct {
	rpc   processconnect.ProcessClient
	waits waits
}

// Command is what to run in the guest.
type Command struct {
	Cmd  string
	Args []string
	Env  map[string]string
	// Cwd is where it starts; empty: the user's home or the template's directory.
	Cwd string
	// User runs it; empty: the sandbox's default.
	User string
	// Tag is a name to find it by; it may be empty.
	Tag string
	// Timeout is how long it may run; 0: for ever.
	Timeout time.Duration
	// Stdin is whether it gets a stdin that SendInput writes to.
	Stdin bool
	// Terminal, unless it is nil, is the size of the terminal that it gets in place of
	// the three streams.
	Terminal *TerminalSize
	// Background is whether nobody waits for its end, which Processes tells again.
	Background bool
}

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Cols, Rows uint32 }

func (s TerminalSize) proto() *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: s.Cols, Rows: s.Rows}}
}

// Event is one of Started, Output and Ended.
type Event interface{ event() }

// Started is the first event of every process.
type Started struct {
	PID uint32
	// ReplayBytes is how much of the output that follows is of before.
	ReplayBytes uint64
	// Offset is where the output that follows begins; nil when the guest does not say.
	Offset *Offset
}

// Offset is a place in a process's output: how many bytes of each kind came before it since
// the process began. What a terminal shows counts as Stdout.
type Offset struct{ Stdout, Stderr uint64 }

// Replay says what of a process's output so far comes before what comes from now on. Its
// zero value is nothing.
type Replay struct {
	// Kept is whether it is what the guest has kept of the latest.
	Kept bool
	// From, unless it is nil, is from where on it is, as far as that is kept.
	From *Offset
}

// Output is bytes that the process wrote. Data is the receiver's to keep.
type Output struct {
	From Source
	Data []byte
}

// Source is where output comes from.
type Source int

// The sources of output.
const (
	Stdout Source = iota + 1
	Stderr
	Terminal
)

// Ended is the last event of every process.
type Ended struct {
	// ExitCode is the process's own; -1 when a signal ended it.
	ExitCode int32
	// Signal is the name of the signal that ended it, such as SIGKILL, or empty.
	Signal string
	// TimedOut is whether it was killed because its Timeout had passed.
	TimedOut bool
}

func (Started) event() {}
func (Output) event()  {}
func (Ended) event()   {}

// timeoutHeader is the process's lifetime limit in milliseconds. It is set by hand: a
// deadline on the context would set it too, but would also end the stream on this side
// in the very moment in which the guest reports the end.
const timeoutHeader = "Connect-Timeout-Ms"

// replayHeader asks the guest for the latest output that it has kept of a process, before
// what comes from now on.
const replayHeader = "Wrenn-Replay"

// replayFromHeader asks it for the output from a place on, as two numbers: "4096,0".
const replayFromHeader = "Wrenn-Replay-From"

// replayBytesHeader and outputOffsetHeader are the guest's answer to them: how many bytes of
// output that is, and where it begins.
const (
	replayBytesHeader  = "Wrenn-Replay-Bytes"
	outputOffsetHeader = "Wrenn-Output-Offset"
)

// Start runs a command and gives its events to sink, in order, until the process has
// ended; it returns nil after Ended. When sink or ctx fails, the process goes on.
func (p *processes) Start(ctx context.Context, cmd Command, sink func(Event) error) error {
	msg := &process.StartRequest{
		Process:    &process.ProcessConfig{Cmd: cmd.Cmd, Args: cmd.Args, Envs: cmd.Env},
		Background: cmd.Background,
	}
	if cmd.Cwd != "" {
		msg.Process.Cwd = &cmd.Cwd
	}
	if cmd.Tag != "" {
		msg.Tag = &cmd.Tag
	}
	if cmd.Terminal != nil {
		msg.Pty = cmd.Terminal.proto()
	} else {
		msg.Stdin = &cmd.Stdin
	}
	req := asUser(connect.NewRequest(msg), cmd.User)
	if cmd.Timeout > 0 {
		req.Header().Set(timeoutHeader, strconv.FormatInt(max(1, cmd.Timeout.Milliseconds()), 10))
	}
	req.Header().Set(pingHeader, pingInterval)
	// Closing the stream would read it to its end; ending its context drops it.
	ctx, v := p.waits.watch(ctx, cmd.Timeout)
	defer v.end()
	stream, err := p.rpc.Start(ctx, req)
	if err != nil {
		return rpcError(ctx, err)
	}
	return follow(ctx, v, stream, sink)
}

// Connect gives the events of a process that was started before to sink, as Start does. The
// end of a process is known for a while after it.
func (p *processes) Connect(ctx context.Context, sel Selector, replay Replay, sink func(Event) error) error {
	req := connect.NewRequest(&process.ConnectRequest{Process: sel.proto()})
	if replay.Kept || replay.From != nil {
		req.Header().Set(replayHeader, "true") // all that a guest daemon of before knows
	}
	if from := replay.From; from != nil {
		req.Header().Set(replayFromHeader, fmt.Sprintf("%d,%d", from.Stdout, from.Stderr))
	}
	req.Header().Set(pingHeader, pingInterval)
	ctx, v := p.waits.watch(ctx, 0)
	defer v.end()
	stream, err := p.rpc.Connect(ctx, req)
	if err != nil {
		return rpcError(ctx, err)
	}
	return follow(ctx, v, stream, sink)
}

// follow gives the events of a stream to sink until the process has ended.
func follow[T any, M interface {
	*T
	GetEvent() *process.ProcessEvent
}](ctx context.Context, v *vigil, stream *connect.ServerStreamForClient[T], sink func(Event) error) error {
	for receive(v, stream) {
		event := fromProcessEvent(M(stream.Msg()).GetEvent())
		if event == nil {
			continue
		}
		if started, ok := event.(Started); ok {
			// A guest that does not say how much it replays has replayed nothing.
			started.ReplayBytes, _ = strconv.ParseUint(stream.ResponseHeader().Get(replayBytesHeader), 10, 64)
			started.Offset = parseOffset(stream.ResponseHeader().Get(outputOffsetHeader))
			event = started
		}
		if err := sink(event); err != nil {
			return err
		}
		if _, done := event.(Ended); done {
			return nil
		}
	}
	err := stream.Err()
	// Only the guest's own word counts: a broken connection may look like a time-out too.
	if ce := new(connect.Error); errors.As(err, &ce) && connect.IsWireError(ce) && ce.Code() == connect.CodeDeadlineExceeded {
		return sink(Ended{ExitCode: -1, Signal: unix.SignalName(unix.SIGKILL), TimedOut: true})
	}
	if err == nil {
		err = fault.Wrap(io.ErrUnexpectedEOF, fault.AgentError, "the sandbox broke the command's stream off")
	}
	return rpcError(ctx, err)
}

// parseOffset returns what the guest says, nil when it says nothing that makes sense.
func parseOffset(text string) *Offset {
	stdout, stderr, _ := strings.Cut(text, ",")
	var o Offset
	var errs [2]error
	o.Stdout, errs[0] = strconv.ParseUint(stdout, 10, 64)
	o.Stderr, errs[1] = strconv.ParseUint(stderr, 10, 64)
	if errors.Join(errs[:]...) != nil {
		return nil
	}
	return &o
}

// receive is Receive under a vigil.
func receive[T any](v *vigil, stream *connect.ServerStreamForClient[T]) bool {
	v.guests()
	defer v.ours()
	return stream.Receive()
}

// fromProcessEvent translates an event; a keep-alive is nil.
func fromProcessEvent(e *process.ProcessEvent) Event {
	switch e := e.GetEvent().(type) {
	case *process.ProcessEvent_Start:
		return Started{PID: e.Start.GetPid()}
	case *process.ProcessEvent_Data:
		switch out := e.Data.GetOutput().(type) {
		case *process.ProcessEvent_DataEvent_Stdout:
			return Output{From: Stdout, Data: out.Stdout}
		case *process.ProcessEvent_DataEvent_Stderr:
			return Output{From: Stderr, Data: out.Stderr}
		case *process.ProcessEvent_DataEvent_Pty:
			return Output{From: Terminal, Data: out.Pty}
		}
	case *process.ProcessEvent_End:
		end := Ended{ExitCode: e.End.GetExitCode()}
		if !e.End.GetExited() {
			end.Signal = signalName(e.End.GetStatus())
		}
		return end
	}
	return nil
}

// signalName turns Go's description of a signal's end, such as "signal: killed", into
// the signal's name. What it does not know it returns as it is.
func signalName(status string) string {
	text, ok := strings.CutPrefix(status, "signal: ")
	if !ok {
		return status
	}
	text, _, _ = strings.Cut(text, " (core dumped)")
	for s := unix.Signal(1); s < maxSignal; s++ {
		if s.String() == text {
			return unix.SignalName(s)
		}
	}
	return text
}

// maxSignal is one past the last signal that has a name of its own.
const maxSignal unix.Signal = 32

// Process is a running process that was started through envd.
type Process struct {
	PID  uint32
	Tag  string
	Cmd  string
	Args []string
	// Background is as in Command; a terminal is always so.
	Background bool
}

// Processes lists the running processes.
func (p *processes) Processes(ctx context.Context) ([]Process, error) {
	resp, err := p.rpc.List(ctx, connect.NewRequest(&process.ListRequest{}))
	if err != nil {
		return nil, rpcError(ctx, err)
	}
	list := make([]Process, 0, len(resp.Msg.GetProcesses()))
	for _, found := range resp.Msg.GetProcesses() {
		list = append(list, Process{
			PID: found.GetPid(), Tag: found.GetTag(), Cmd: found.GetConfig().GetCmd(), Args: found.GetConfig().GetArgs(),
			Background: found.GetBackground(),
		})
	}
	return list, nil
}

// Selector names a process by its pid, or by its tag when PID is 0.
type Selector struct {
	PID uint32
	Tag string
}

func (s Selector) proto() *process.ProcessSelector {
	if s.PID != 0 {
		return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: s.PID}}
	}
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: s.Tag}}
}

// SendInput writes to a process's stdin and returns when all of data is taken.
func (p *processes) SendInput(ctx context.Context, s Selector, data []byte) error {
	return p.sendInput(ctx, s, &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: data}})
}

// SendTerminalInput is SendInput for a process with a terminal.
func (p *processes) SendTerminalInput(ctx context.Context, s Selector, data []byte) error {
	return p.sendInput(ctx, s, &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: data}})
}

func (p *processes) sendInput(ctx context.Context, s Selector, in *process.ProcessInput) error {
	_, err := p.rpc.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: s.proto(), Input: in}))
	return inputError(ctx, err)
}

// ResizeTerminal changes the size of a process's terminal, of which the process is told.
func (p *processes) ResizeTerminal(ctx context.Context, s Selector, size TerminalSize) error {
	_, err := p.rpc.Update(ctx, connect.NewRequest(&process.UpdateRequest{Process: s.proto(), Pty: size.proto()}))
	return inputError(ctx, err)
}

// CloseStdin ends a process's stdin.
func (p *processes) CloseStdin(ctx context.Context, s Selector) error {
	_, err := p.rpc.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: s.proto()}))
	return inputError(ctx, err)
}

// inputError is rpcError for what is done to a process's input or terminal. That a process
// has no such thing, or has it no more, the guest's protocol calls internal or unknown; it
// is the process's state.
func inputError(ctx context.Context, err error) error {
	var ce *connect.Error
	if ctx.Err() == nil && errors.As(err, &ce) && connect.IsWireError(ce) && (fault.Is(err, fault.Internal) || fault.Is(err, fault.Unknown)) {
		return fault.Wrap(err, fault.InvalidState, "%s", fault.MessageOf(err))
	}
	return rpcError(ctx, err)
}

// Signal sends SIGTERM, or SIGKILL when kill is set, to a process and its group.
func (p *processes) Signal(ctx context.Context, s Selector, kill bool) error {
	sig := process.Signal_SIGNAL_SIGTERM
	if kill {
		sig = process.Signal_SIGNAL_SIGKILL
	}
	_, err := p.rpc.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{Process: s.proto(), Signal: sig}))
	if err != nil {
		return fmt.Errorf("send signal: %w", rpcError(ctx, err))
	}
	return nil
}
