package webproxy

import (
	"net/http"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// aboutOrigin are the headers by which an application says something of its whole origin,
// which is not its own where others share it.
var aboutOrigin = []string{"Clear-Site-Data", "Nel", "Report-To", "Reporting-Endpoints", "Strict-Transport-Security"}

// notInTrailers are the headers of an answer that count at its beginning, where they are
// looked at; who takes them from the end, too, must not get them past that.
var notInTrailers = append([]string{
	"Set-Cookie", "Location", "Content-Location", "Refresh", "Service-Worker-Allowed", "Alt-Svc", webroute.HeaderProblem,
}, aboutOrigin...)

// finish makes the headers of an answer those that the client is to get.
func (x *exchange) finish(header http.Header) {
	dropOwn(header)
	if x.to.prefix == "" || x.to.whole {
		webroute.Strip(header, x.to.Target.Prefix())
	}
	if x.to.whole {
		webroute.Confine(header, x.to.prefix)
	}
	if x.to.prefix != "" || x.to.byHeader {
		for _, name := range aboutOrigin {
			header.Del(name)
		}
	}
	if x.to.byHeader {
		header.Add("Vary", "E2b-Sandbox-Id, E2b-Sandbox-Port")
	}
}

// answerWriter sees to the informational answers (1xx) of an application, which come before
// the one that is finished by itself.
type answerWriter struct {
	http.ResponseWriter
	x *exchange
}

// Unwrap is for http.ResponseController.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *answerWriter) WriteHeader(status int) {
	if status < http.StatusOK && status != http.StatusSwitchingProtocols {
		w.Header().Del(webroute.HeaderProblem)
		w.x.finish(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

// finishTrailer takes out of the trailer of an answer what has no place in it. It comes
// between the end of the body and that of the handler, when header has nothing but the
// trailer to say any more.
func finishTrailer(header http.Header) {
	for name := range header {
		plain := http.CanonicalHeaderKey(strings.TrimPrefix(name, http.TrailerPrefix))
		for _, other := range notInTrailers {
			if plain == other {
				delete(header, name)
			}
		}
	}
}
