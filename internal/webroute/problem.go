package webroute

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Kind says what kind of problem kept a request from being served.
type Kind string

// The kinds of problems.
const (
	KindNotFound  Kind = "not_found"   // there is no such sandbox, or it has ended
	KindPaused    Kind = "paused"      // it does not run now
	KindClosed    Kind = "closed_port" // nothing listens on the port
	KindForbidden Kind = "forbidden"
	KindTooMany   Kind = "too_many"
	KindBusy      Kind = "busy"    // the server has no room for more
	KindBroken    Kind = "broken"  // the application answered nothing that is HTTP
	KindSilent    Kind = "silent"  // the application did not answer in time
	KindNoPath    Kind = "no_path" // of the guest daemon, for its host alone
)

// Problem is why a request is not served. Clients of E2B know its status and its message.
type Problem struct {
	Kind    Kind
	Status  int
	Message string
	// Advice says to a person what to do; it is for browsers.
	Advice string
	Target Target // the parts that are known
	// Path is set when there is nothing at it.
	Path string
	// RetryAfter is when it is worth to ask again; 0: that is not said.
	RetryAfter time.Duration
}

// busyTime is when a server that has no room may be asked again.
const busyTime = 5 * time.Second

// NotFound is the problem of a sandbox that does not exist, or not any more.
func NotFound(t Target) Problem {
	t.Port = 0
	return Problem{Kind: KindNotFound, Status: http.StatusBadGateway, Message: "The sandbox was not found", Target: t,
		Advice: "It may have ended. Look at its name, or start another one."}
}

// Paused is the problem of a sandbox that is not running. Its message is that of one which
// does not exist, as with E2B.
func Paused(t Target) Problem {
	t.Port = 0
	return Problem{Kind: KindPaused, Status: http.StatusBadGateway, Message: "The sandbox was not found", Target: t,
		Advice: "It is paused, or not running yet. Resume it with: wrenn resume " + t.Sandbox}
}

// Closed is the problem of a port that nothing listens on.
func Closed(t Target) Problem {
	return Problem{Kind: KindClosed, Status: http.StatusBadGateway, Message: "The sandbox is running but port is not open", Target: t,
		Advice: fmt.Sprintf("Start a server on port %d in the sandbox, and load this page again. These ports are open: wrenn ports %s", t.Port, t.Sandbox)}
}

// Broken is the problem of an application that answered nothing that is HTTP, or too much
// of it before its answer began.
func Broken(t Target) Problem {
	return Problem{Kind: KindBroken, Status: http.StatusBadGateway, Message: "The server in the sandbox did not answer with valid HTTP", Target: t,
		Advice: fmt.Sprintf("What listens on port %d may be no web server, or has just ended. Look at its output in the sandbox.", t.Port)}
}

// Silent is the problem of an application that does not answer.
func Silent(t Target) Problem {
	return Problem{Kind: KindSilent, Status: http.StatusGatewayTimeout, Message: "The server in the sandbox did not answer in time", Target: t,
		Advice: fmt.Sprintf("What listens on port %d takes connections and does not answer. Look at its output in the sandbox.", t.Port)}
}

// TooMany is the problem of a sandbox that is asked more than it may be.
func TooMany(t Target, message string) Problem {
	return Problem{Kind: KindTooMany, Status: http.StatusTooManyRequests, Message: message, Target: t,
		Advice: "Wait a moment, and load this page again."}
}

// Busy is the problem of a server that has as many connections to sandboxes as it can have.
func Busy(t Target) Problem {
	t.Port = 0
	return Problem{Kind: KindBusy, Status: http.StatusServiceUnavailable, Message: "This server has too many connections to sandboxes at once", Target: t,
		Advice: "Wait a moment, and load this page again.", RetryAfter: busyTime}
}

// NoPath is the problem of a path that is not for anybody outside the sandbox's host.
func NoPath(path string) Problem {
	return Problem{Kind: KindNoPath, Status: http.StatusNotFound, Message: "There is nothing at this path", Path: path}
}

// Write answers a request with the problem: as JSON, or as a page for a browser that asks
// for one. It must be called before anything else is written.
func (p Problem) Write(w http.ResponseWriter, r *http.Request) {
	// Who is still sending is told at once, and not when all has been sent.
	_ = http.NewResponseController(w).EnableFullDuplex()
	h := w.Header()
	h.Set(HeaderProblem, string(p.Kind))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Add("Vary", "Accept")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(p.RetryAfter.Seconds())))
	}
	body, kind := p.json(), "application/json"
	if wantsPage(r) {
		body, kind = p.page(), "text/html; charset=utf-8"
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	}
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client may be gone; there is nobody left to tell
}

// wantsPage reports whether a person sees the answer. Programs send the user agent of a
// browser, or accept everything, but not both and HTML by name.
func wantsPage(r *http.Request) bool {
	return strings.Contains(r.UserAgent(), "Mozilla/") && strings.Contains(strings.Join(r.Header["Accept"], ","), "text/html")
}

func (p Problem) json() []byte {
	body, err := json.Marshal(struct {
		SandboxID string `json:"sandboxId,omitempty"`
		Message   string `json:"message"`
		Path      string `json:"path,omitempty"`
		Port      uint16 `json:"port,omitempty"`
		Code      int    `json:"code"`
	}{p.Target.Sandbox, p.Message, p.Path, p.Target.Port, p.Status})
	if err != nil { // strings and numbers always have a JSON form
		return []byte("{}")
	}
	return append(body, '\n')
}

const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%[1]s</title>
<style>
body { margin: 0; min-height: 100vh; display: grid; place-items: center; font: 16px/1.5 system-ui, sans-serif; color: #1c2024; background: #f7f7f5 }
main { max-width: 34rem; padding: 2rem }
h1 { font-size: 1.25rem; margin: 0 0 .5rem }
p { margin: .25rem 0 }
small { color: #687076 }
@media (prefers-color-scheme: dark) { body { color: #ececec; background: #17191a } small { color: #9aa0a6 } }
</style>
<main>
<h1>%[1]s</h1>
<p>%[2]s</p>
<p><small>%[3]s</small></p>
</main>
</html>
`

func (p Problem) page() []byte {
	about := fmt.Sprintf("%d %s", p.Status, http.StatusText(p.Status))
	if p.Target.Sandbox != "" {
		about += " · sandbox " + p.Target.Sandbox
	}
	if p.Target.Port != 0 {
		about += fmt.Sprintf(" · port %d", p.Target.Port)
	}
	return fmt.Appendf(nil, page, html.EscapeString(p.Message), html.EscapeString(p.Advice), html.EscapeString(about))
}
