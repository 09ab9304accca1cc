package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// reconnectFor is how long a broken connection is tried again, in all.
	reconnectFor = 2 * time.Minute
	// minRetry and maxRetry are the pauses between two attempts.
	minRetry = 200 * time.Millisecond
	maxRetry = 5 * time.Second
	// dialFor bounds an attempt: a server that takes a connection and says nothing does
	// not keep another from being tried.
	dialFor = 10 * time.Second
	// steadyAfter is how long a connection has to hold before the next one that breaks is
	// trouble of its own. Without it a server that takes every client and sends it away
	// again would be asked for ever.
	steadyAfter = 10 * time.Second
)

// interruption is the error of a connection that broke while the terminal, or the process
// whose output is printed, may live.
type interruption struct{ reason error }

func (i *interruption) Error() string { return i.reason.Error() }

// outage is a time of trouble with the connection, until one holds. Its zero value is
// that there is none.
type outage struct {
	began  time.Time
	pause  time.Duration // before the next attempt
	reason string        // that was told last
}

// next returns how long to wait before the next attempt, if there is to be one.
func (o *outage) next(now time.Time) (pause time.Duration, again bool) {
	if o.began.IsZero() {
		o.began, o.pause = now, minRetry
		return 0, true
	}
	pause = o.pause
	o.pause = min(2*pause, maxRetry)
	return pause, now.Add(pause).Sub(o.began) <= reconnectFor
}

// held says how long the latest connection was of use.
func (o *outage) held(d time.Duration) {
	if d >= steadyAfter {
		*o = outage{}
	}
}

// reconnect returns a new connection; nil when the person has detached meanwhile, and with
// an error when none could be made.
func (r *remoteTerminal) reconnect(ctx context.Context, why error) (*websocket.Conn, error) {
	if !r.connected.IsZero() {
		r.trouble.held(time.Since(r.connected))
		r.connected = time.Time{}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-r.keys.detached:
			cancel()
		case <-ctx.Done():
		}
	}()
	r.local.say("\r\n")
	for {
		pause, again := r.trouble.next(time.Now())
		if !again {
			return nil, gaveUp(why)
		}
		r.tellTrouble(why)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		conn, err := r.dial(ctx)
		switch {
		case r.hasDetached():
			if err == nil {
				_ = conn.CloseNow()
			}
			return nil, nil
		case err == nil:
			r.attach = true
			return conn, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !mayPass(err):
			r.ended = fault.Is(err, fault.NotFound) || fault.Is(err, fault.InvalidState)
			return nil, err
		}
		why = err
	}
}

// gaveUp is the error of an outage that did not end.
func gaveUp(why error) error {
	return fault.Wrap(why, fault.CodeOf(why), "gave up connecting again after %v: %s", reconnectFor, fault.MessageOf(why))
}

func (r *remoteTerminal) dial(ctx context.Context) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	return r.server.dialStream(ctx, r.id, "pty")
}

// tellTrouble says why there is no connection, when that is new, and in a line that is
// always the same how long it has been so.
func (r *remoteTerminal) tellTrouble(why error) {
	if reason := printable(fault.MessageOf(why)); reason != r.trouble.reason {
		r.trouble.reason = reason
		r.local.say(clearLine + "[wrenn: " + reason + "]\r\n")
	}
	r.local.say(fmt.Sprintf("%s[wrenn: connecting again, for %v of %v; %s gives up]", clearLine,
		time.Since(r.trouble.began).Round(time.Second), reconnectFor, detachKeys))
}

// mayPass reports whether an error may be gone a moment later.
func mayPass(err error) bool {
	switch fault.CodeOf(err) {
	case fault.HostUnavailable, fault.RateLimited, fault.AgentError, fault.Internal:
		return true
	}
	return false
}
