package guestclient

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// A guest can be there and do nothing: whatever runs in it may have stopped its daemon. Its
// kernel acknowledges on, so that no connection breaks; and as long as a call is under way
// its sandbox is not idle. So a call is given up whose guest leaves it waiting for too long.
// Time in which it is the caller who does not read or send is not the guest's.

// waits is how long a guest may leave a call waiting.
type waits struct {
	// silence is how long nothing need come. It is longer than pingInterval, and than a
	// guest stands still while it is written down.
	silence time.Duration
	// overdue is how much later than its time limit a command's end may be told.
	overdue time.Duration
}

var defaultWaits = waits{silence: 3 * time.Minute, overdue: 30 * time.Second}

const (
	// pingInterval is how often the guest is asked to say that a process still runs, in
	// seconds; pingHeader asks it.
	pingInterval = "60"
	pingHeader   = "Keepalive-Ping-Interval"
)

// vigil gives one call up. The guest's turn begins with it, and each turn ends the other.
// It is safe for concurrent use; end it.
type vigil struct {
	waits
	due    time.Time // when the guest is to have ended the call by itself; zero: never
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

// errSilent is the cause with which the context of a call ends that was given up.
type errSilent struct{ error }

func (e *errSilent) Unwrap() error { return e.error }

// watch begins a vigil over a call that the guest is to end within limit; 0: no limit. The
// call is to be made with the context that it returns.
func (w waits) watch(ctx context.Context, limit time.Duration) (context.Context, *vigil) {
	ctx, cancel := context.WithCancelCause(ctx)
	v := &vigil{waits: w, cancel: cancel}
	if limit > 0 {
		v.due = time.Now().Add(limit)
	}
	v.timer = time.AfterFunc(v.patience(), v.giveUp)
	return ctx, v
}

func (v *vigil) patience() time.Duration {
	if v.due.IsZero() {
		return v.silence
	}
	return min(v.silence, max(0, time.Until(v.due))+v.overdue)
}

func (v *vigil) giveUp() {
	if !v.due.IsZero() && !time.Now().Before(v.due) {
		v.cancel(&errSilent{fault.New(fault.DeadlineExceeded,
			"the command's time is over and the sandbox does not say what became of it; its daemon may be stopped, and the command may still run")})
		return
	}
	v.cancel(&errSilent{fault.New(fault.AgentError,
		"the sandbox has said nothing for %v; its daemon may be stopped, or the sandbox overloaded; if it stays so, pause and resume it or make a new one", v.silence)})
}

// guests begins a turn of the guest's, and ours ends it.
func (v *vigil) guests() { v.timer.Reset(v.patience()) }
func (v *vigil) ours()   { v.timer.Stop() }

func (v *vigil) end() {
	v.timer.Stop()
	v.cancel(nil)
}

// givenUp is why the call that ctx belongs to was given up; nil if it was not.
func givenUp(ctx context.Context) error {
	var silent *errSilent
	if errors.As(context.Cause(ctx), &silent) {
		return silent.error
	}
	return nil
}

// download is contents that the guest sends.
type download struct {
	io.ReadCloser
	ctx   context.Context // of the request, to learn why it ended
	vigil *vigil
}

func (d *download) Read(p []byte) (int, error) {
	d.vigil.guests()
	n, err := d.ReadCloser.Read(p)
	d.vigil.ours()
	if err != nil {
		if why := givenUp(d.ctx); why != nil {
			return n, why
		}
	}
	return n, err
}

func (d *download) Close() error {
	defer d.vigil.end()
	return d.ReadCloser.Close()
}

// upload is contents that the guest takes: what was read of them is on its way, and who
// asks for more has sent it.
type upload struct {
	io.Reader
	vigil *vigil
}

func (u upload) Read(p []byte) (int, error) {
	u.vigil.ours()
	defer u.vigil.guests()
	return u.Reader.Read(p)
}

// Close closes what is read, as a request does with its body.
func (u upload) Close() error {
	if body, ok := u.Reader.(io.Closer); ok {
		return body.Close()
	}
	return nil
}
