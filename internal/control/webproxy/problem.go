package webproxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/relay"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// What a sandbox has too much of.
var (
	errTooMany = errors.New("too many connections to this sandbox")
	errTooFast = errors.New("too many requests for this sandbox")
	// errFull is that all sandboxes together have too much.
	errFull = errors.New("too many connections to sandboxes")
)

// kindRefused is the kind of a request that makes no sense here.
const kindRefused webroute.Kind = "refused"

// refuse answers a request with why it is not served.
func refuse(w http.ResponseWriter, r *http.Request, p webroute.Problem) { p.Write(w, r) }

// badRoute is the problem of a request that names no target.
func badRoute(err error) webroute.Problem {
	return webroute.Problem{
		Kind: kindRefused, Status: fault.HTTPStatus(fault.CodeOf(err)), Message: fault.MessageOf(err),
		Advice: "A port of a sandbox is named by its number and the sandbox's id. These ports are open: wrenn ports SANDBOX",
	}
}

// lookupProblem is the problem of a sandbox that could not be looked up.
func lookupProblem(to webroute.Target, err error) webroute.Problem {
	if fault.Is(err, fault.NotFound) {
		return webroute.NotFound(to)
	}
	return unavailable(to)
}

// unavailable is the problem of a server that cannot do its part now.
func unavailable(to webroute.Target) webroute.Problem {
	to.Port = 0
	return webroute.Problem{
		Kind: webroute.KindBroken, Status: http.StatusBadGateway, Target: to,
		Message: "The sandbox cannot be reached right now", Advice: "Wrenn may be starting. Try again in a moment.",
	}
}

// stateProblem is the problem of a sandbox that does not run.
func stateProblem(to webroute.Target, sb sandbox.Sandbox, err error) webroute.Problem {
	switch {
	case errors.Is(err, errTooMany), errors.Is(err, errFull):
		return limitProblem(to, err)
	case !errors.Is(err, errAsleep):
		return wakeProblem(to, err)
	}
	switch sb.Status {
	case sandbox.Paused:
		return webroute.Paused(to)
	case sandbox.Pending, sandbox.Starting, sandbox.Pausing, sandbox.Resuming:
		return wakeProblem(to, errBetween)
	}
	return webroute.NotFound(to)
}

// wakeProblem is the problem of a sandbox that could not be woken, or not be used.
func wakeProblem(to webroute.Target, err error) webroute.Problem {
	if fault.Is(err, fault.NotFound) {
		return webroute.NotFound(to)
	}
	to.Port = 0
	p := webroute.Problem{
		Kind: webroute.KindPaused, Status: fault.HTTPStatus(fault.CodeOf(err)), Message: fault.MessageOf(err), Target: to,
		Advice: "Load this page again in a moment. What the sandbox is doing says: wrenn get " + to.Sandbox,
	}
	if errors.Is(err, context.Canceled) || p.Status == http.StatusInternalServerError {
		p.Status, p.Message = http.StatusBadGateway, "The sandbox could not be resumed"
	}
	return p
}

// limitProblem is the problem of a sandbox that is asked for too much, or of a server.
func limitProblem(to webroute.Target, err error) webroute.Problem {
	if errors.Is(err, errFull) {
		return webroute.Busy(to)
	}
	message := "Too many requests for this sandbox in a short time"
	if errors.Is(err, errTooMany) {
		message = "Too many connections to this sandbox at once"
	}
	return webroute.TooMany(to, message)
}

// forbidden is the problem of a request without the right to come in.
func forbidden(to webroute.Target, wrong bool) webroute.Problem {
	port := to.Port
	to.Port = 0
	message := "This sandbox is private; send its traffic token in the header e2b-traffic-access-token"
	if wrong {
		message = "The traffic token is not that of this sandbox"
	}
	return webroute.Problem{
		Kind: webroute.KindForbidden, Status: http.StatusForbidden, Message: message, Target: to,
		Advice: "To open it in a browser make a one-time link: " + fmt.Sprintf("wrenn open %s %d", to.Sandbox, port),
	}
}

// foreign is the problem of a request that another's page has a browser send.
func foreign(to webroute.Target) webroute.Problem {
	p := forbidden(to, false)
	p.Message = "Pages of other origins may not send this request with the cookie of a browser; send the traffic token in the header e2b-traffic-access-token"
	return p
}

// badLink is the problem of a link that was used before, or is too old.
func badLink(to webroute.Target) webroute.Problem {
	p := forbidden(to, false)
	p.Message = "This link was used already, or is too old"
	return p
}

// hostProblem is the problem of a request that did not reach the host agent, or whose answer
// broke off before it began.
func (e *Edge) hostProblem(r *http.Request, to webroute.Target, err error) webroute.Problem {
	switch {
	case errors.Is(err, errReplaced), errors.Is(context.Cause(r.Context()), errReplaced):
		return limitProblem(to, errTooMany)
	case errors.Is(err, errCut), errors.Is(context.Cause(r.Context()), errCut):
		return webroute.NotFound(to)
	case errors.Is(err, relay.ErrUnasked):
		return webroute.Broken(to)
	case errors.Is(err, context.DeadlineExceeded):
		return webroute.Silent(to)
	}
	e.log.DebugContext(r.Context(), "a proxied request failed", "sandbox", to.Sandbox, "port", to.Port, "error", err)
	return unavailable(to)
}
