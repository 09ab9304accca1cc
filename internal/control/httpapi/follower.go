package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/semaphore"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// inputRoom is how much waits for a process that does not read its input before the
	// client waits too, in bytes; a message takes messageRoom at least. Until then all
	// else that the client says is heard. Once it waits, nothing is, not even a stop:
	// the process is then ended by its own route.
	inputRoom   = 4 << 20
	messageRoom = 1 << 10
	// maxInput is how much of what waits for a process goes to it in one call, in bytes.
	maxInput = 256 << 10
)

// errEnded is that the last message was sent.
var errEnded = errors.New("the WebSocket has had its last message")

// follower is one client and the process that it follows.
type follower struct {
	conn    *websocket.Conn
	dialect dialect
	session sandbox.Session
	log     *slog.Logger
	cancel  context.CancelFunc // ends the context of all that is done for the client
	// input is what the process is to read; nil closes its stdin. Nobody blocks on it:
	// room bounds what is in it.
	input chan []byte
	room  *semaphore.Weighted
	// full is whether the client waits for room.
	full atomic.Bool
	// sent counts the messages to the client.
	sent atomic.Int64

	// turn holds a token while somebody writes to the client; last is guarded by it.
	turn chan struct{}
	last bool // nothing may be sent any more
	// finished is closed when the WebSocket is closed after its last message.
	finished chan struct{}
}

// follow tells the client what the process does, and the process what the client says,
// until either comes to its end. It reports whether that of the process was seen.
func (f *follower) follow(ctx context.Context, pace pace) (over bool) {
	// Closing the session is what unblocks the reading of events when the client is gone.
	defer context.AfterFunc(ctx, func() { _ = f.session.Close() })()
	var out outbox
	out.init(pace.pong)
	defer context.AfterFunc(ctx, out.close)()

	var wg sync.WaitGroup
	wg.Go(func() { defer f.cancel(); f.readMessages(ctx) })
	wg.Go(func() { f.feed(ctx) })
	wg.Go(func() { f.keepAlive(ctx, pace) })
	wg.Go(func() { f.watchWhileFull(ctx, pace.ping) })
	wg.Go(func() { f.readEvents(ctx, &out) })
	over, err := f.sendEvents(ctx, &out)
	if errors.Is(err, errEnded) {
		<-f.finished
	}
	f.cancel()
	_ = f.conn.CloseNow()
	_ = f.session.Close()
	wg.Wait()
	return over
}

// readEvents fills the outbox with what the process does.
func (f *follower) readEvents(ctx context.Context, out *outbox) {
	for {
		ev, err := f.session.Next()
		if err != nil {
			// Once the client has gone the session is closed by us, which is no loss.
			if ctx.Err() == nil {
				level := slog.LevelWarn
				if errors.Is(err, sandbox.ErrPaused) {
					level = slog.LevelDebug // it was to be
				}
				f.log.Log(ctx, level, "lost a process that a client follows", "error", err)
				out.put(item{err: err})
			}
			return
		}
		if !out.put(item{event: ev}) {
			_ = f.session.Close() // so that the process goes on without a client that does not read
			return
		}
		if ev.Kind == sandbox.Exited {
			return
		}
	}
}

// sendEvents tells the client what the process does until that has come to an end, or the
// client has gone. It reports whether it has: it is not followed any more, or has ended.
func (f *follower) sendEvents(ctx context.Context, out *outbox) (over bool, err error) {
	if err := f.send(ctx, f.dialect.started(f.session.Started())); err != nil {
		return false, err
	}
	enc := encoder{dialect: f.dialect, send: func(m []byte) error {
		err := f.send(ctx, m)
		out.progress()
		return err
	}}
	var items []item
	for {
		items = out.take(items)
		if items == nil {
			return false, context.Cause(ctx)
		}
		for _, it := range items {
			if it.err == nil && it.event.Kind != sandbox.Exited {
				if err := enc.add(it.event); err != nil {
					return false, err
				}
				continue
			}
			if err := enc.flush(); err != nil {
				return true, err
			}
			if it.err != nil {
				f.end(ctx, it.err, lostStatus(it.err))
			} else {
				f.finish(ctx, f.dialect.exited(it.event.Exit), websocket.StatusNormalClosure)
			}
			return true, nil
		}
		if err := enc.sendPending(); err != nil {
			return false, err
		}
	}
}

// readMessages does what the client says until it goes away.
func (f *follower) readMessages(ctx context.Context) {
	for {
		kind, raw, err := f.conn.Read(ctx)
		if err != nil {
			return
		}
		var m clientMessage
		if kind != websocket.MessageText {
			err = errBinary
		} else {
			m, err = f.dialect.decode(raw)
		}
		if err != nil {
			f.end(ctx, err, badMessageStatus(err))
			return
		}
		if err := f.do(ctx, m); err != nil {
			if f.send(ctx, f.dialect.failed(err, false)) != nil {
				return
			}
		}
	}
}

func (f *follower) do(ctx context.Context, m clientMessage) error {
	if m.refused != nil {
		return m.refused
	}
	switch m.kind {
	case typeStdin, typeInput:
		if len(m.data) > 0 { // nothing to write, and nil would mean the end
			f.queue(ctx, m.data)
		}
	case typeStdinClose:
		f.queue(ctx, nil)
	case typeResize:
		return f.session.Resize(ctx, m.size)
	case typeStop, typeKill:
		return f.session.Kill(ctx)
	case typeStart, typeConnect:
		return fault.New(fault.InvalidState, "a process is followed already; open another WebSocket for another one")
	}
	return nil
}

// roomFor is what a message takes of the room.
func roomFor(data []byte) int64 { return int64(max(len(data), messageRoom)) }

func (f *follower) queue(ctx context.Context, data []byte) {
	if !f.room.TryAcquire(roomFor(data)) {
		f.full.Store(true)
		defer f.full.Store(false)
		if f.room.Acquire(ctx, roomFor(data)) != nil {
			return // the client has gone
		}
	}
	f.input <- data
}

// feed writes to the process. Apart from readMessages, so that a process that does not
// read can still be stopped.
func (f *follower) feed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case data := <-f.input:
			var err error
			taken, closing := roomFor(data), data == nil
			if !closing {
				var more int64
				data, more, closing = f.more(data)
				taken += more
				err = f.session.Write(ctx, data)
			}
			f.room.Release(taken)
			if closing && err == nil {
				err = f.session.CloseStdin(ctx)
			}
			if err != nil && ctx.Err() == nil {
				_ = f.send(ctx, f.dialect.failed(err, false)) // sendEvents finds out if the client is gone
			}
		}
	}
}

// more joins what has come meanwhile to data, as a paste does in many small messages.
// taken is the room of what was joined, closing whether the end of the input was among it.
func (f *follower) more(data []byte) (joined []byte, taken int64, closing bool) {
	for len(data) < maxInput {
		select {
		case next := <-f.input:
			taken += roomFor(next)
			if next == nil {
				return data, taken, true
			}
			data = append(data, next...)
		default:
			return data, taken, false
		}
	}
	return data, taken, false
}

// maxUnasked is how many pings in a row may be left out since output is on its way that
// the client does not take.
const maxUnasked = 10

// keepAlive finds out about a client that went away without a word.
func (f *follower) keepAlive(ctx context.Context, pace pace) {
	tick := time.NewTicker(pace.ping)
	defer tick.Stop()
	unasked, sent := 0, int64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if f.full.Load() {
			continue // nobody reads the client's answers; see watchWhileFull
		}
		asked, err := f.ping(ctx, pace.pong)
		if now := f.sent.Load(); asked || now != sent {
			unasked, sent = 0, now
		} else {
			unasked++
		}
		switch {
		case unasked > maxUnasked:
			f.cancel()
			return
		case err != nil && !f.full.Load():
			// It may be there, and not read: then this is the last that it finds.
			time.AfterFunc(pace.pong, f.cancel) // and it need not answer that
			f.end(ctx, notRead(pace.pong), websocket.StatusPolicyViolation)
			return
		}
	}
}

// ping asks the client whether it is there, unless output is on its way to it: a ping would
// wait behind that, and the WebSocket breaks when it does so for 5 s. Output that the
// client takes says as much as an answer, and what it does not take is the outbox's matter.
func (f *follower) ping(ctx context.Context, wait time.Duration) (asked bool, err error) {
	if !f.tryTurn(ctx) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if ping := f.dialect.ping(); ping != nil {
		err = f.conn.Write(ctx, websocket.MessageText, ping)
	}
	<-f.turn
	if err == nil {
		err = f.conn.Ping(ctx)
	}
	if err != nil && f.tryTurn(ctx) {
		<-f.turn
		return true, err
	}
	return err == nil, nil // whoever writes by now finds out
}

// tryTurn takes the turn if what is sent now goes out at once: nobody else sends, the
// connection has room, and the last message is not said yet.
func (f *follower) tryTurn(ctx context.Context) bool {
	select {
	case f.turn <- struct{}{}:
	default:
		return false
	}
	if f.last || !hasRoom(ctx) {
		<-f.turn
		return false
	}
	return true
}

// mayAnswer is whether a ping of the client can be answered now, without waiting for output
// that it does not take. One that does not read does not see the answer either.
func (f *follower) mayAnswer(ctx context.Context) bool {
	ok := f.tryTurn(ctx)
	if ok {
		<-f.turn
	}
	return ok
}

// watchWhileFull looks for a client that hangs up while input waits for the process. Nobody
// reads from the connection then, and a pong that is waited for may be behind that input.
func (f *follower) watchWhileFull(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if f.full.Load() && hungUp(ctx) {
			f.cancel()
			return
		}
	}
}

// leave is what happens when the client has gone that started a process with a stdin: the
// process lives on, and reads the end of its stdin, since nobody can write to it any more.
func (f *follower) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	// A process that has ended is not found, and needs no end of its stdin.
	if err := f.session.CloseStdin(ctx); err != nil && !fault.Is(err, fault.NotFound) {
		f.log.DebugContext(ctx, "could not close the stdin of a command whose client has gone", "error", err)
	}
}

// send sends one message. It is safe for concurrent use.
func (f *follower) send(ctx context.Context, m []byte) error {
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-f.turn }()
	if f.last {
		return errEnded
	}
	err := f.conn.Write(ctx, websocket.MessageText, m)
	f.sent.Add(1)
	return err
}

// end tells the client of the error that ends the WebSocket.
func (f *follower) end(ctx context.Context, err error, status websocket.StatusCode) {
	f.finish(ctx, f.dialect.failed(err, true), status)
}

// finish sends the last message and closes the WebSocket. Of several that want to have
// the last word the first one has it; the others wait until it is said.
func (f *follower) finish(ctx context.Context, m []byte, status websocket.StatusCode) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	defer f.cancel()
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return
	}
	if f.last {
		<-f.turn
		<-f.finished
		return
	}
	f.last = true
	err := f.conn.Write(ctx, websocket.MessageText, m)
	<-f.turn
	defer close(f.finished)
	if err == nil {
		_ = f.conn.Close(status, "") // the client may be gone, which is as good
	}
}
