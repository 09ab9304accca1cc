package webproxy

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/relay"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

const (
	// touchStep is how often the moving of bytes is told as activity, at most.
	touchStep = 500 * time.Millisecond
)

// serve answers a request for a port of a sandbox.
func (e *Edge) serve(w http.ResponseWriter, r *http.Request, to target) {
	defer func() {
		if p := recover(); p != nil {
			resetOnAbort(r, p)
			panic(p)
		}
	}()
	// Before anything is looked up: who asks for them learns nothing.
	if to.Port == webroute.EnvdPort && webroute.IsControl(to.rest) {
		path, _, _ := strings.Cut(to.rest, "?")
		refuse(w, r, webroute.NoPath(path))
		return
	}
	if r.Method == http.MethodConnect {
		refuse(w, r, webroute.Problem{Kind: kindRefused, Status: http.StatusMethodNotAllowed, Message: "CONNECT is not possible here", Target: to.Target})
		return
	}
	gu, sb, err := e.look(r.Context(), to.Sandbox)
	if err != nil {
		refuse(w, r, lookupProblem(to.Target, err))
		return
	}
	if sb.Web.Private() && to.Port != webroute.EnvdPort && !e.admit(w, r, to, sb) {
		return
	}
	counts := mayWake(r, to, sb)
	for again := false; ; again = true {
		if gu, err = e.awake(r.Context(), gu, sb, counts); err != nil {
			refuse(w, r, stateProblem(to.Target, sb, err))
			return
		}
		if again && r.Body != nil && r.Body != http.NoBody {
			// A body that has been begun cannot be sent a second time.
			refuse(w, r, wakeProblem(to.Target, errBetween))
			return
		}
		if !e.visit(w, r, gu, visitTo{to, sb, again, counts}) {
			return
		}
		// Its host says that it is paused, which nobody here has heard yet.
		if gu, sb, err = e.lookAgain(r.Context(), sb.ID); err != nil {
			refuse(w, r, lookupProblem(to.Target, err))
			return
		}
	}
}

// mayWake reports whether a request wakes a sandbox and is activity. envd's port is open to
// everybody, since envd asks for a token of its own, but not for all that it is asked; so of
// a private sandbox that alone keeps nothing awake.
func mayWake(r *http.Request, to target, sb sandbox.Sandbox) bool {
	return !sb.Web.Private() || to.Port != webroute.EnvdPort || hasToken(r, sb) || hasPass(r, to, sb)
}

// lookAgain is look, after the store has been told what the host says of the sandbox.
func (e *Edge) lookAgain(ctx context.Context, id string) (*guest, sandbox.Sandbox, error) {
	if err := e.sandboxes.Refresh(ctx, id); err != nil {
		return nil, sandbox.Sandbox{}, err
	}
	e.guests.forget(id)
	return e.look(ctx, id)
}

// look returns what is known of a sandbox, which the store is asked for when that is old.
func (e *Edge) look(ctx context.Context, id string) (*guest, sandbox.Sandbox, error) {
	if gu := e.guests.get(id); gu != nil {
		if sb, fresh := gu.known(); fresh {
			return gu, sb, nil
		}
	}
	at := now()
	sb, err := e.sandboxes.Find(ctx, id)
	if err != nil {
		return nil, sandbox.Sandbox{}, err
	}
	return e.guests.learn(sb, at), sb, nil
}

// errAsleep is that a sandbox does not run, and is not to be woken.
var errAsleep = errors.New("the sandbox does not run")

// awake returns when the sandbox runs, having woken it if it asked for that and it may be.
func (e *Edge) awake(ctx context.Context, gu *guest, sb sandbox.Sandbox, may bool) (*guest, error) {
	switch sb.Status {
	case sandbox.Running:
		return gu, nil
	case sandbox.Paused, sandbox.Pausing, sandbox.Resuming:
		if !sb.Web.AutoResume || !may {
			return nil, errAsleep
		}
	default:
		return nil, errAsleep
	}
	done, err := gu.wait()
	if err != nil {
		return nil, err
	}
	defer done()
	if err := e.sandboxes.Wake(ctx, sb.ID); err != nil {
		return nil, err
	}
	e.guests.forget(sb.ID)
	gu, sb, err = e.look(ctx, sb.ID)
	if err == nil && sb.Status != sandbox.Running {
		err = errAsleep
	}
	return gu, err
}

// begin notes that a request begins. A sandbox that is just being paused, and asked for it,
// is woken again.
func (e *Edge) begin(ctx context.Context, sb sandbox.Sandbox) (end func(), err error) {
	if end, ok := e.sandboxes.Begin(sb.ID); ok {
		return end, nil
	}
	if !sb.Web.AutoResume {
		return nil, errBetween
	}
	// It is sealed a moment before its status says so.
	for tick := time.NewTicker(sealStep); ; {
		if err := e.sandboxes.Wake(ctx, sb.ID); err != nil {
			tick.Stop()
			return nil, err
		}
		if end, ok := e.sandboxes.Begin(sb.ID); ok {
			tick.Stop()
			return end, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return nil, ctx.Err()
		}
	}
}

// sealStep is how often a sandbox that is about to be paused is tried again.
const sealStep = 20 * time.Millisecond

// errBetween is that a sandbox is between two states.
var errBetween = fault.New(fault.InvalidState, "the sandbox is still transitioning; try again in a moment")

// visitTo is where a request goes.
type visitTo struct {
	target
	sandbox sandbox.Sandbox
	// again is whether it is tried a second time, when whatever comes is the answer.
	again bool
	// counts is whether it is activity.
	counts bool
}

// visit passes a request on, bounded by what the sandbox may have. It reports whether the
// host says that the sandbox is paused; the request is not answered then.
func (e *Edge) visit(w http.ResponseWriter, r *http.Request, gu *guest, to visitTo) (paused bool) {
	ctx, cancel := outlive(r)
	defer cancel(nil)
	v, err := gu.enter(cancel)
	if errors.Is(err, errFull) && e.guests.makeRoom() {
		v, err = gu.enter(cancel)
	}
	if err != nil {
		refuse(w, r, limitProblem(to.Target, err))
		return false
	}
	kept := false
	defer func() {
		if !kept {
			v.leave()
		}
	}()
	end := func() {}
	if to.counts {
		end, err = e.begin(ctx, to.sandbox)
	}
	if err != nil {
		refuse(w, r, stateProblem(to.Target, to.sandbox, err))
		return false
	}
	defer end()
	x := &exchange{edge: e, visit: v, to: to.target, web: to.sandbox.Web, again: to.again, counts: to.counts, began: now(), answered: end}
	in := r.WithContext(ctx)
	in.Header = to.clean(r.Header)
	if protocol := relay.UpgradeProtocol(in); protocol != "" {
		kept = e.upgrade(w, in, x, protocol)
	} else {
		e.forward(w, in, x)
	}
	return x.paused
}

// exchange is a request that is being passed on.
type exchange struct {
	edge  *Edge
	visit *visit
	to    target
	web   sandbox.Web
	began time.Time
	// again is whether this is the second try, and paused whether the host has said in the
	// first that the sandbox is paused.
	again, paused bool
	// counts is whether it is activity.
	counts bool
	// answered notes that the request is no longer waited for: from then on bytes alone are
	// activity, so that a stream that is merely open keeps nothing awake.
	answered func()
}

// note counts the answer.
func (x *exchange) note(status int) {
	x.visit.moved.Store(now().UnixNano())
	x.visit.guest.stats.answered(status, time.Since(x.began))
	x.answered()
}

// isPaused notes whether an answer is the host's that the sandbox is paused, unless it was
// asked about that before. An application cannot give such an answer.
func (x *exchange) isPaused(answer http.Header) bool {
	x.paused = !x.again && answer.Get(webroute.HeaderProblem) == string(webroute.KindPaused)
	return x.paused
}

// moved notes that bytes went to or from the sandbox.
func (x *exchange) moved() {
	x.visit.moved.Store(now().UnixNano())
	if x.counts {
		x.edge.touch(x.visit.guest)
	}
}

// touch tells that a sandbox is active, now and then.
func (e *Edge) touch(gu *guest) {
	at, last := now().UnixNano(), gu.touched.Load()
	if at-last >= int64(touchStep) && gu.touched.CompareAndSwap(last, at) {
		e.sandboxes.Touch(gu.id)
	}
}

// halfCloseGrace is how long a request goes on whose client has closed its side: it may
// have only said that it sends nothing more, which cannot be told from its having gone
// until something is written to it.
const halfCloseGrace = 5 * time.Second

// outlive is the context of a request that goes on for a moment when its client closes its
// side of the connection. One of HTTP/2 says when it does not want the answer any more.
func outlive(r *http.Request) (context.Context, context.CancelCauseFunc) {
	if r.ProtoMajor > 1 {
		return context.WithCancelCause(r.Context())
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	stop := context.AfterFunc(r.Context(), func() {
		grace := time.NewTimer(halfCloseGrace)
		defer grace.Stop()
		select {
		case <-grace.C:
			cancel(r.Context().Err())
		case <-ctx.Done():
		}
	})
	return ctx, func(cause error) {
		stop()
		cancel(cause)
	}
}
