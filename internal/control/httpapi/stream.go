package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// maxMessage is the size of the largest message of a client, in bytes.
	maxMessage = 1 << 20
	// pingInterval is how often the server asks whether the client is still there, and
	// how long the client may take to answer.
	pingInterval = 30 * time.Second
	// startTime is how long a client may take to say what to start.
	startTime = 30 * time.Second
	// stdinQueue is how many messages wait for a process that does not read its stdin,
	// before the client waits too.
	stdinQueue = 16
	// leaveTime bounds what is done when a client has gone.
	leaveTime = 10 * time.Second
)

// execStream serves commands over WebSockets.
type execStream struct {
	processes    Processes
	log          *slog.Logger
	pingInterval time.Duration
}

func (e execStream) serve(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	// Before the upgrade there is still an answer with a status.
	if err := e.processes.CheckRunning(r.Context(), id); err != nil {
		return err
	}
	if !websocketWanted(r) {
		return fault.New(fault.InvalidRequest, "this is a WebSocket; connect with the headers Connection: Upgrade and Upgrade: websocket")
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		// Accept has answered already; only the log is left.
		e.log.DebugContext(r.Context(), "a WebSocket was refused", "request", requestID(r.Context()), "error", err)
		return nil
	}
	defer func() { _ = conn.CloseNow() }() // it is closed, one way or another
	conn.SetReadLimit(maxMessage)
	// The request's context says nothing any more once the connection was taken over;
	// whoever finds the client gone cancels this one.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	e.run(ctx, cancel, conn, id)
	return nil
}

func websocketWanted(r *http.Request) bool {
	return headerHas(r.Header, "Connection", "upgrade") && headerHas(r.Header, "Upgrade", "websocket")
}

// run starts what the client asks for and follows it to its end, or the client's.
func (e execStream) run(ctx context.Context, cancel context.CancelFunc, conn *websocket.Conn, id string) {
	cmd, err := readStart(ctx, conn)
	if err != nil {
		_ = send(ctx, conn, errorMessage(err))
		_ = conn.Close(websocket.StatusPolicyViolation, "the first message must be a start")
		return
	}
	s, err := e.processes.Open(ctx, id, cmd)
	if err != nil {
		_ = send(ctx, conn, errorMessage(err))
		_ = conn.Close(websocket.StatusNormalClosure, "")
		return
	}
	f := follower{conn: conn, session: s, log: e.log.With("sandbox", id, "pid", s.PID()), stdin: make(chan []byte, stdinQueue)}
	// Closing the session is what unblocks the reading of events when the client is gone.
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()

	var wg sync.WaitGroup
	wg.Go(func() { defer cancel(); f.readMessages(ctx) })
	wg.Go(func() { f.feedStdin(ctx) })
	wg.Go(func() { f.keepAlive(ctx, cancel, e.pingInterval) })
	ended := f.sendEvents(ctx)
	if ended {
		_ = conn.Close(websocket.StatusNormalClosure, "")
	} else {
		f.leave(ctx, cmd.Stdin)
	}
	cancel()
	_ = conn.CloseNow()
	_ = s.Close()
	wg.Wait()
}

// readStart reads what to run.
func readStart(ctx context.Context, conn *websocket.Conn) (sandbox.Command, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	_, raw, err := conn.Read(ctx)
	if err != nil {
		return sandbox.Command{}, fault.Wrap(err, fault.InvalidRequest, "no message came; the first one must be a start")
	}
	m, err := decodeMessage(raw)
	if err != nil {
		return sandbox.Command{}, err
	}
	if m.kind != typeStart {
		return sandbox.Command{}, fault.New(fault.InvalidRequest, "the first message must be a start and not %q", m.kind)
	}
	return m.start, nil
}

// follower is one client and the process it started. Each method but send's is for a
// goroutine of its own.
type follower struct {
	conn    *websocket.Conn
	session sandbox.Session
	log     *slog.Logger
	// stdin is what the process is to read; nil closes it.
	stdin chan []byte
}

// sendEvents tells the client what the process does. It reports whether that has come to
// an end, rather than the client having gone.
func (f *follower) sendEvents(ctx context.Context) (ended bool) {
	if err := send(ctx, f.conn, serverMessage{Type: typeStart, PID: f.session.PID(), Tag: f.session.Tag()}); err != nil {
		return false
	}
	var out, errs joiner
	for {
		ev, err := f.session.Next()
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			f.log.WarnContext(ctx, "lost a command that a client follows", "error", err)
			return send(ctx, f.conn, errorMessage(err)) == nil
		}
		switch ev.Kind {
		case sandbox.Stdout:
			err = f.sendOutput(ctx, typeStdout, out.push(ev.Data))
		case sandbox.Stderr:
			err = f.sendOutput(ctx, typeStderr, errs.push(ev.Data))
		case sandbox.Exited:
			err = errors.Join(
				f.sendOutput(ctx, typeStdout, out.flush()),
				f.sendOutput(ctx, typeStderr, errs.flush()),
				send(ctx, f.conn, exitMessage(ev.Exit)))
			return err == nil
		}
		if err != nil {
			return false
		}
	}
}

func (f *follower) sendOutput(ctx context.Context, kind string, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	return send(ctx, f.conn, outputMessage(kind, data))
}

// readMessages does what the client says until it goes away.
func (f *follower) readMessages(ctx context.Context) {
	for {
		_, raw, err := f.conn.Read(ctx)
		if err != nil {
			return
		}
		m, err := decodeMessage(raw)
		if err == nil {
			err = f.do(ctx, m)
		}
		if err != nil {
			if err := send(ctx, f.conn, errorMessage(err)); err != nil {
				return
			}
		}
	}
}

func (f *follower) do(ctx context.Context, m clientMessage) error {
	switch m.kind {
	case typeStdin:
		if len(m.stdin) > 0 { // nothing to write, and nil would mean the end
			f.queue(ctx, m.stdin)
		}
	case typeStdinClose:
		f.queue(ctx, nil)
	case typeStop:
		return f.session.Kill(ctx)
	case typeStart:
		return fault.New(fault.InvalidState, "the command runs already; open another WebSocket for another command")
	}
	return nil
}

func (f *follower) queue(ctx context.Context, data []byte) {
	select {
	case f.stdin <- data:
	case <-ctx.Done():
	}
}

// feedStdin writes to the process. Apart from readMessages, so that a process that does
// not read can still be stopped.
func (f *follower) feedStdin(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case data := <-f.stdin:
			var err error
			if data == nil {
				err = f.session.CloseStdin(ctx)
			} else {
				err = f.session.Write(ctx, data)
			}
			if err != nil && ctx.Err() == nil {
				_ = send(ctx, f.conn, errorMessage(err)) // sendEvents finds out if the client is gone
			}
		}
	}
}

// keepAlive finds out about a client that went away without a word.
func (f *follower) keepAlive(ctx context.Context, cancel context.CancelFunc, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// While input waits for the process nobody reads the client's answers.
		if len(f.stdin) == cap(f.stdin) {
			continue
		}
		pctx, done := context.WithTimeout(ctx, interval)
		err := f.conn.Ping(pctx)
		done()
		if err != nil && len(f.stdin) < cap(f.stdin) {
			cancel()
			return
		}
	}
}

// leave is what happens when the client has gone: the process lives on, and reads the
// end of its stdin, since nobody can write to it any more.
func (f *follower) leave(ctx context.Context, stdin bool) {
	f.log.DebugContext(ctx, "a client left its command running")
	if !stdin {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	if err := f.session.CloseStdin(ctx); err != nil && !fault.Is(err, fault.NotFound) {
		f.log.WarnContext(ctx, "could not close the stdin of a command whose client has gone", "error", err)
	}
}

// send sends one message. It is safe for concurrent use.
func send(ctx context.Context, conn *websocket.Conn, m serverMessage) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return conn.Write(ctx, websocket.MessageText, raw)
}
