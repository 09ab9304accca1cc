package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/semaphore"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// maxMessage is the size of the largest message of a client, in bytes.
	maxMessage = 1 << 20
	// pingInterval is how often the server asks whether the client is still there.
	pingInterval = 30 * time.Second
	// pongTime is how long a client may take to answer.
	pongTime = 30 * time.Second
	// startTime is how long a client may take to say what to start.
	startTime = 30 * time.Second
	// leaveTime bounds what is done when a client has gone or is to go.
	leaveTime = 10 * time.Second
)

// pace is how often a client is asked whether it is there, and how long it may take to
// say so.
type pace struct{ ping, pong time.Duration }

// errStopping is the last that a client hears when the server stops.
var errStopping = fault.New(fault.HostUnavailable, "the server is stopping")

// streams serves processes over WebSockets. It is safe for concurrent use, and must be
// closed for its clients to hear that the server stops.
type streams struct {
	processes Processes
	log       *slog.Logger
	pace      pace

	stopping chan struct{} // closed by close
	mu       sync.Mutex
	stopped  bool
	open     sync.WaitGroup
}

func newStreams(processes Processes, log *slog.Logger) *streams {
	return &streams{processes: processes, log: log, pace: pace{ping: pingInterval, pong: pongTime}, stopping: make(chan struct{})}
}

// close tells every client that the server stops, and waits until they know or ctx ends.
func (s *streams) close(ctx context.Context) error {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.stopping)
	}
	s.mu.Unlock()
	told := make(chan struct{})
	go func() {
		defer close(told)
		s.open.Wait()
	}()
	select {
	case <-told:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enter counts one more stream, unless the server stops.
func (s *streams) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.open.Add(1)
	}
	return !s.stopped
}

// opening is what a client wants: a new process, or one that runs.
type opening struct {
	start   *sandbox.Command
	connect *sandbox.Follow
}

// exec serves …/exec/stream.
func (s *streams) exec(w http.ResponseWriter, r *http.Request) error {
	return s.serve(w, r, &commandDialect{}, readFirst(decodeCommandMessage))
}

// terminal serves …/pty.
func (s *streams) terminal(w http.ResponseWriter, r *http.Request) error {
	return s.serve(w, r, &terminalDialect{}, readFirst(decodeTerminalMessage))
}

// process serves …/processes/{process}/stream.
func (s *streams) process(w http.ResponseWriter, r *http.Request) error {
	follow, err := decodeFollow(r.PathValue("process"), r.URL.Query())
	if err != nil {
		return err
	}
	return s.serve(w, r, &commandDialect{}, func(context.Context, *websocket.Conn) (opening, error) {
		return opening{connect: &follow}, nil
	})
}

// decodeFollow reads what a client wants to hear of a process.
func decodeFollow(process string, query url.Values) (sandbox.Follow, error) {
	f := sandbox.Follow{Process: selector(process)}
	if given := query.Get("replay"); given != "" {
		var err error
		if f.Replay, err = strconv.ParseBool(given); err != nil {
			return sandbox.Follow{}, fault.Wrap(err, fault.InvalidRequest, "parameter \"replay\" must be true or false")
		}
	}
	var from sandbox.Offset
	for name, count := range map[string]*uint64{"stdout_from": &from.Stdout, "stderr_from": &from.Stderr} {
		given := query.Get(name)
		if given == "" {
			continue
		}
		const bits = 63 // as openapi.yaml says
		var err error
		if *count, err = strconv.ParseUint(given, 10, bits); err != nil {
			return sandbox.Follow{}, fault.Wrap(err, fault.InvalidRequest, "parameter %q must be a number of bytes", name)
		}
		f.From = &from
	}
	return f, nil
}

func (s *streams) serve(w http.ResponseWriter, r *http.Request, d dialect, first func(context.Context, *websocket.Conn) (opening, error)) error {
	id := r.PathValue("id")
	// Before the upgrade there is still an answer with a status.
	if err := s.processes.CheckRunning(r.Context(), id); err != nil {
		return err
	}
	if !websocketWanted(r) {
		return fault.New(fault.InvalidRequest, "this is a WebSocket; connect with the headers Connection: Upgrade and Upgrade: websocket")
	}
	if !s.enter() {
		return errStopping
	}
	defer s.open.Done()
	f := &follower{
		dialect: d, log: s.log.With("sandbox", id),
		turn: make(chan struct{}, 1), finished: make(chan struct{}),
		input: make(chan []byte, inputRoom/messageRoom), room: semaphore.NewWeighted(inputRoom),
	}
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		OnPingReceived: func(context.Context, []byte) bool { return f.mayAnswer(r.Context()) },
	})
	if err != nil {
		// Accept has answered already; only the log is left.
		s.log.DebugContext(r.Context(), "a WebSocket was refused", "request", requestID(r.Context()), "error", err)
		return nil
	}
	defer func() { _ = conn.CloseNow() }() // it is closed, one way or another
	conn.SetReadLimit(maxMessage)
	// The request's context says nothing any more once the connection was taken over;
	// whoever finds the client gone cancels this one.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	f.conn, f.cancel = conn, cancel
	go func() {
		select {
		case <-ctx.Done():
		case <-s.stopping:
			f.end(ctx, errStopping, websocket.StatusGoingAway)
		}
	}()
	s.run(ctx, f, id, first)
	return nil
}

func websocketWanted(r *http.Request) bool {
	return headerHas(r.Header, "Connection", "upgrade") && headerHas(r.Header, "Upgrade", "websocket")
}

// run begins what the client asks for and follows it to its end, or the client's.
func (s *streams) run(ctx context.Context, f *follower, id string, first func(context.Context, *websocket.Conn) (opening, error)) {
	want, err := first(ctx, f.conn)
	if err != nil {
		f.end(ctx, err, badMessageStatus(err))
		return
	}
	if want.start != nil {
		f.session, err = s.processes.Open(ctx, id, *want.start)
	} else {
		f.session, err = s.processes.Connect(ctx, id, *want.connect)
	}
	if err != nil {
		f.end(ctx, err, refusedStatus(err))
		return
	}
	defer func() { _ = f.session.Close() }() // never fails in a way that matters: it cancels
	f.log = f.log.With("pid", f.session.Started().PID)
	if over := f.follow(ctx, s.pace); !over && want.start != nil && want.start.Stdin {
		f.leave(ctx)
	}
}

// readFirst reads the message with which a client says what it wants.
func readFirst(decode func([]byte) (clientMessage, error)) func(context.Context, *websocket.Conn) (opening, error) {
	return func(ctx context.Context, conn *websocket.Conn) (opening, error) {
		ctx, cancel := context.WithTimeout(ctx, startTime)
		defer cancel()
		kind, raw, err := conn.Read(ctx)
		if err != nil {
			return opening{}, fault.Wrap(err, fault.InvalidRequest, "no message came; the first one must be a start")
		}
		if kind != websocket.MessageText {
			return opening{}, errBinary
		}
		m, err := decode(raw)
		switch {
		case err != nil:
			return opening{}, err
		case m.kind == typeStart:
			return opening{start: &m.start}, nil
		case m.kind == typeConnect:
			return opening{connect: &m.connect}, nil
		}
		return opening{}, fault.New(fault.InvalidRequest, "the first message must be a start and not %q", m.kind)
	}
}

// errBinary is what is wrong with a message that is not text.
var errBinary = fault.New(fault.InvalidRequest, "messages must be JSON text, not binary")

// badMessageStatus is the status with which a WebSocket ends after a message that the
// server cannot use.
func badMessageStatus(err error) websocket.StatusCode {
	if errors.Is(err, errBinary) {
		return websocket.StatusUnsupportedData
	}
	return websocket.StatusPolicyViolation
}

// refusedStatus is the status with which a WebSocket ends that never got its process.
func refusedStatus(err error) websocket.StatusCode {
	if fault.HTTPStatus(fault.CodeOf(err)) < http.StatusInternalServerError {
		return websocket.StatusPolicyViolation
	}
	return websocket.StatusInternalError
}

// statusPaused is the status of ours with which a WebSocket ends whose sandbox was paused:
// its process goes on after the resume.
const statusPaused websocket.StatusCode = 4001

// lostStatus is the status with which a WebSocket ends whose process got lost.
func lostStatus(err error) websocket.StatusCode {
	if errors.Is(err, sandbox.ErrPaused) {
		return statusPaused
	}
	switch fault.CodeOf(err) {
	case fault.NotFound, fault.InvalidState, fault.HostUnavailable:
		return websocket.StatusGoingAway // the sandbox, or its host, is gone
	case fault.RateLimited:
		return websocket.StatusPolicyViolation // the client did not read
	}
	return websocket.StatusInternalError
}
