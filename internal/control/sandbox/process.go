package sandbox

import (
	"context"
	"log/slog"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// DefaultExecTimeout is how long a command in the foreground may take when nobody says.
const DefaultExecTimeout = 30 * time.Second

const (
	// signalTime bounds the killing of a process whose client has gone.
	signalTime = 10 * time.Second
	// stdinChunk is how much input goes to a process in one call, in bytes.
	stdinChunk = 256 << 10
)

// Processes is the commands in sandboxes. Get it from Service.Processes. It is safe for
// concurrent use.
type Processes struct {
	core *Service
	host HostProcesses
	log  *slog.Logger
}

// Result is what became of a command.
type Result struct {
	Exit
	Stdout    []byte
	Stderr    []byte
	Truncated bool // output beyond MaxOutput was dropped
	Duration  time.Duration
}

// Exec runs a command, feeds it stdin and returns when it has ended. When ctx ends
// before that the command is killed.
func (p *Processes) Exec(ctx context.Context, id string, cmd Command, stdin []byte) (Result, error) {
	cmd.Stdin = len(stdin) > 0
	// The news of the start may come together with that of the end, so that only the
	// whole time says something.
	began := time.Now()
	s, err := p.Open(ctx, id, cmd)
	if err != nil {
		return Result{}, err
	}
	defer s.Close()

	// Whatever the reason that nobody waits any more, the command must not go on.
	kill := context.AfterFunc(ctx, func() {
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signalTime)
		defer cancel()
		if err := s.Kill(kctx); err != nil && !fault.Is(err, fault.NotFound) {
			p.log.WarnContext(kctx, "could not kill a command whose client has gone", "sandbox", id, "pid", s.Started().PID, "error", err)
		}
		_ = s.Close() // ends Next below; the process is dealt with
	})
	defer kill()

	if cmd.Stdin {
		feed, stop := context.WithCancel(ctx)
		fed := make(chan struct{})
		go func() {
			defer close(fed)
			p.feed(feed, s, stdin)
		}()
		defer func() { stop(); <-fed }()
	}
	res, err := collect(s)
	if ctx.Err() != nil {
		return Result{}, ctx.Err()
	}
	res.Duration = time.Since(began)
	return res, err
}

// feed writes stdin and closes it. A program may end, or close its stdin, without having
// read it all; that is not an error.
func (p *Processes) feed(ctx context.Context, s Session, stdin []byte) {
	for len(stdin) > 0 {
		n := min(len(stdin), stdinChunk)
		if err := s.Write(ctx, stdin[:n]); err != nil {
			p.log.DebugContext(ctx, "a command did not take its input", "pid", s.Started().PID, "error", err)
			break
		}
		stdin = stdin[n:]
	}
	if err := s.CloseStdin(ctx); err != nil {
		p.log.DebugContext(ctx, "a command's input could not be closed", "pid", s.Started().PID, "error", err)
	}
}

// collect reads a command's output to its end.
func collect(s Session) (Result, error) {
	var out, errs bounded
	for {
		ev, err := s.Next()
		if err != nil {
			return Result{}, err
		}
		switch ev.Kind {
		case Stdout:
			out.add(ev.Data)
		case Stderr:
			errs.add(ev.Data)
		case Exited:
			return Result{
				Exit: ev.Exit, Stdout: out.bytes(), Stderr: errs.bytes(),
				Truncated: out.truncated || errs.truncated,
			}, nil
		}
	}
}

// Background starts a command and leaves it to itself.
func (p *Processes) Background(ctx context.Context, id string, cmd Command) (Started, error) {
	cmd.Stdin, cmd.Background = false, true
	s, err := p.Open(ctx, id, cmd)
	if err != nil {
		return Started{}, err
	}
	return s.Started(), s.Close()
}

// List returns the commands that run in a sandbox.
func (p *Processes) List(ctx context.Context, id string) ([]Process, error) {
	if err := p.core.requireRunning(ctx, id); err != nil {
		return nil, err
	}
	return p.host.List(ctx, id)
}

// Signal sends a signal to a process.
func (p *Processes) Signal(ctx context.Context, id string, sel Selector, sig Signal) error {
	done, err := p.core.use(ctx, id, request)
	if err != nil {
		return err
	}
	defer done()
	return p.host.Signal(ctx, id, sel, sig)
}

// CheckRunning returns the error of Open for a sandbox that is not running.
func (p *Processes) CheckRunning(ctx context.Context, id string) error {
	return p.core.requireRunning(ctx, id)
}
