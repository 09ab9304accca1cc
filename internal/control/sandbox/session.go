package sandbox

import (
	"context"
	"errors"
	"io"
	"maps"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// tagLength is the number of characters of a tag that is made up.
const tagLength = 12

// The size of a terminal whose client does not say one.
const (
	terminalCols = 80
	terminalRows = 24
)

// terminalEnv is what a terminal's environment has unless its client says otherwise.
var terminalEnv = map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8"}

// Session is a process that somebody follows. Next belongs to one goroutine; the other
// methods are safe for concurrent use.
type Session interface {
	Started() Started
	// Next blocks for the next event; the last one is Exited.
	Next() (Event, error)
	// Write returns when the process's stdin, or terminal, has taken all of data.
	Write(ctx context.Context, data []byte) error
	CloseStdin(ctx context.Context) error
	Resize(ctx context.Context, size TerminalSize) error
	Kill(ctx context.Context) error
	// Close stops following, unblocks Next and leaves the process alone.
	Close() error
}

// Started names a process that was started.
type Started struct {
	PID uint32
	Tag string // empty when the process was found by its pid
	// ReplayBytes is how much of the output that follows is of before.
	ReplayBytes uint64
	// Offset is where the output that follows begins; nil when it is the latest that was
	// kept, or the sandbox does not say.
	Offset *Offset
}

// Offset is a place in a process's output: how many bytes of each kind came before it since
// the process began. What a terminal shows counts as Stdout.
type Offset struct{ Stdout, Stderr uint64 }

// Open starts a command. Its session does not end with ctx, which is only about the
// start: who opened it closes it. A command with a terminal and without a name is the
// user's login shell.
func (p *Processes) Open(ctx context.Context, id string, cmd Command) (Session, error) {
	prefix := "cmd-"
	if cmd.Terminal != nil {
		prefix = "pty-"
		cmd = cmd.inTerminal()
	}
	if cmd.Tag == "" {
		cmd.Tag = prefix + randomName(tagLength)
	}
	if err := cmd.validate(); err != nil {
		return nil, err
	}
	kind := command
	if cmd.Terminal != nil {
		kind = onlooking
	}
	s, err := p.newSession(ctx, id, kind)
	if err != nil {
		return nil, err
	}
	s.terminal = cmd.Terminal != nil
	err = s.withinStartTime(func() (err error) {
		s.started, s.events, err = p.host.Start(s.life, id, cmd)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.started.Tag = cmd.Tag
	return s, nil
}

// startTime bounds the start of a command, or of following one, in a guest that does not
// answer. The one who asked may have gone long before.
const startTime = 60 * time.Second

// withinStartTime runs a start, and ends the session when it takes too long.
func (s *session) withinStartTime(start func() error) error {
	limit := time.AfterFunc(startTime, s.cancel)
	err := start()
	if !limit.Stop() {
		return fault.Wrap(err, fault.AgentError, "the sandbox did not answer within %v", startTime)
	}
	return err
}

// Follow says what to follow of a process that runs.
type Follow struct {
	Process Selector
	// Replay is whether the latest output that was kept comes first.
	Replay bool
	// From, unless it is nil, is from where on the output comes, as far as it was kept. It
	// goes before Replay.
	From *Offset
	// Terminal is whether what is written is for the process's terminal.
	Terminal bool
}

// Connect follows a process that was started before. Like that of Open its session does
// not end with ctx.
func (p *Processes) Connect(ctx context.Context, id string, f Follow) (Session, error) {
	s, err := p.newSession(ctx, id, onlooking)
	if err != nil {
		return nil, err
	}
	s.terminal = f.Terminal
	err = s.withinStartTime(func() (err error) {
		s.started, s.events, err = p.host.Connect(s.life, id, f)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.started.Tag = f.Process.Tag
	return s, nil
}

// inTerminal fills in what the client of a terminal did not say.
func (c Command) inTerminal() Command {
	size := *c.Terminal
	if size.Cols == 0 {
		size.Cols = terminalCols
	}
	if size.Rows == 0 {
		size.Rows = terminalRows
	}
	c.Terminal = &size
	env := maps.Clone(terminalEnv)
	maps.Copy(env, c.Env)
	c.Env = env
	return c
}

// session implements Session.
type session struct {
	core     *Service
	id       string
	host     HostProcesses
	started  Started
	terminal bool
	events   EventStream
	// life ends when the session is closed. A start that is cut off might leave a process
	// that nobody knows of; so it does not end with the request that made the session.
	life   context.Context
	cancel context.CancelFunc
	done   func()
}

// newSession begins the use of a sandbox.
func (p *Processes) newSession(ctx context.Context, id string, kind use) (*session, error) {
	done, err := p.core.use(ctx, id, kind)
	if err != nil {
		return nil, err
	}
	s := &session{core: p.core, id: id, host: p.host, done: done}
	s.life, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

func (s *session) Started() Started { return s.started }

func (s *session) Next() (Event, error) {
	ev, err := s.events.Next()
	if err != nil {
		return Event{}, s.why(err)
	}
	s.core.activity.touch(s.id)
	return ev, nil
}

func (s *session) Write(ctx context.Context, data []byte) error {
	s.core.activity.touch(s.id)
	return s.host.SendInput(ctx, s.id, s.selector(), Input{Terminal: s.terminal, Data: data})
}

func (s *session) CloseStdin(ctx context.Context) error {
	return s.host.CloseStdin(ctx, s.id, s.selector())
}

func (s *session) Resize(ctx context.Context, size TerminalSize) error {
	return s.host.Resize(ctx, s.id, s.selector(), size)
}

func (s *session) Kill(ctx context.Context) error {
	return s.host.Signal(ctx, s.id, s.selector(), SIGKILL)
}

func (s *session) selector() Selector { return Selector{PID: s.started.PID} }

// Close only cancels what Next waits for: an event stream's own Close is not safe beside
// its Next, and a canceled stream holds nothing.
func (s *session) Close() error {
	s.cancel()
	s.done()
	return nil
}

const (
	// newsTime is how long the news of a sandbox's end may come after its streams broke.
	newsTime = time.Second
	newsPoll = 20 * time.Millisecond
)

// ErrPaused is in the chain of the error of a stream that ended because its sandbox was
// paused. The process has not ended.
var ErrPaused = errors.New("the sandbox was paused")

// paused is the error of a stream whose sandbox was paused.
func paused(id string, cause error) error {
	return fault.Wrap(errors.Join(ErrPaused, cause), fault.InvalidState, "sandbox %q was paused; resume it, and follow the process again", id)
}

// why is the error of a stream that ended before its process. A broken connection to a
// sandbox is mostly the sandbox's own end, and who follows a process wants to know that.
func (s *session) why(err error) error {
	if errors.Is(err, io.EOF) {
		err = fault.Wrap(err, fault.AgentError, "the sandbox went away before the command had ended")
	}
	switch fault.CodeOf(err) {
	case fault.AgentError, fault.HostUnavailable, fault.InvalidState, fault.NotFound:
	default:
		return err // the guest's own word
	}
	ctx, cancel := context.WithTimeout(s.life, newsTime)
	defer cancel()
	tick := time.NewTicker(newsPoll)
	defer tick.Stop()
	for {
		sb, found := s.core.store.Get(ctx, s.id)
		switch {
		case fault.Is(found, fault.NotFound), found == nil && sb.Status == Stopping && sb.Reason == "":
			return fault.Wrap(err, fault.NotFound, "sandbox %q was deleted", s.id)
		case found == nil && sb.Status == Paused:
			return paused(s.id, err)
		case found == nil && sb.Status != Running && sb.Status != Pausing && sb.Status != Resuming:
			return fault.Wrap(err, fault.InvalidState, "sandbox %q ended: %s", s.id, sb.Reason)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if found == nil && sb.Status == Pausing {
				return paused(s.id, err) // nearly: the host has let go of its streams
			}
			return err
		}
	}
}
