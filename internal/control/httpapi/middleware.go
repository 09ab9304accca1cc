package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	nativePrefix = "/v1/sandboxes"
	aliasPrefix  = "/v1/capsules"
	// protectedPrefix is what wants a key.
	protectedPrefix = "/v1/"

	requestIDHeader = "X-Request-Id"
	requestIDBytes  = 8
)

type requestIDKey struct{}

// withRequestID gives each request an id, which its answer and the log carry.
func withRequestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var raw [requestIDBytes]byte
		_, _ = rand.Read(raw[:]) // never fails: it ends the program instead
		id := hex.EncodeToString(raw[:])
		w.Header().Set(requestIDHeader, id)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestIDKey{}, id)))
	})
}

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// alias serves what is under aliasPrefix as if it were under nativePrefix.
func alias(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, aliasPrefix)
		if !ok || rest != "" && rest[0] != '/' {
			next.ServeHTTP(w, r)
			return
		}
		u := *r.URL
		u.Path = nativePrefix + rest
		if raw, ok := strings.CutPrefix(u.RawPath, aliasPrefix); ok {
			u.RawPath = nativePrefix + raw
		} else {
			u.RawPath = "" // some byte of the prefix itself was escaped
		}
		r2 := *r
		r2.URL = &u
		next.ServeHTTP(w, &r2)
	})
}

// recovered turns a panic into an internal error with a place in the log.
func recovered(next http.Handler, fail failer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tracked := &trackingWriter{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(http.ErrAbortHandler) // the connection is cut on purpose
			}
			fail.write(tracked, r, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}()
		next.ServeHTTP(tracked, r)
	})
}

// trackingWriter knows whether an answer has begun, after which no error can be told.
type trackingWriter struct {
	http.ResponseWriter
	began bool
}

func (w *trackingWriter) WriteHeader(status int) {
	w.began = w.began || status >= http.StatusOK
	w.ResponseWriter.WriteHeader(status)
}

func (w *trackingWriter) Write(p []byte) (int, error) {
	w.began = true
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController, and a WebSocket, reach what is beneath.
func (w *trackingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// failer answers errors and logs those that are the server's.
type failer struct{ log *slog.Logger }

// handler makes a handler of a function that returns an error.
func (f failer) handler(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(w, r); err != nil {
			f.write(w, r, err)
		}
	})
}

// write answers err, or cuts the connection when the answer has already begun: what was
// sent must not look complete.
func (f failer) write(w http.ResponseWriter, r *http.Request, err error) {
	tracked, _ := w.(*trackingWriter)
	began := tracked != nil && tracked.began
	f.record(r, err, began)
	if began {
		panic(http.ErrAbortHandler)
	}
	fault.WriteHTTP(w, err)
}

// record logs what the people who run the server should know.
func (f failer) record(r *http.Request, err error, began bool) {
	level := slog.LevelDebug
	if fault.HTTPStatus(fault.CodeOf(err)) >= http.StatusInternalServerError && r.Context().Err() == nil {
		level = slog.LevelError
	}
	f.log.LogAttrs(r.Context(), level, "request failed",
		slog.String("request", requestID(r.Context())),
		slog.String("method", r.Method),
		slog.String("path", r.URL.Path),
		slog.String("sandbox", r.PathValue("id")),
		slog.String("code", string(fault.CodeOf(err))),
		slog.Bool("cut_off", began),
		slog.Any("error", err))
}

// authenticator finds out who calls.
type authenticator struct{ accounts Accounts }

// check returns the error of a request that may not pass.
func (a authenticator) check(r *http.Request) error {
	secret := r.Header.Get("X-API-Key")
	if secret == "" {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "Bearer") {
			secret = strings.TrimSpace(token)
		}
	}
	if secret == "" {
		return fault.New(fault.Unauthorized, "an API key is missing; send it in the header X-API-Key")
	}
	_, err := a.accounts.Verify(r.Context(), secret)
	return err
}

// router answers what no route matches, and lets through to the routes who may pass.
type router struct {
	mux  *http.ServeMux
	fail failer
	auth authenticator
}

func (rt router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, protectedPrefix) || r.URL.Path == metricsPath {
		if err := rt.auth.check(r); err != nil {
			rt.fail.write(w, r, err)
			return
		}
	}
	if h, pattern := rt.mux.Handler(r); pattern == "" {
		rt.fail.write(w, r, noRoute(h, w, r))
		return
	}
	rt.mux.ServeHTTP(w, r)
}

// noRoute is the error of a request that nothing matches. The mux's own handler knows
// whether another method would match, and which.
func noRoute(h http.Handler, w http.ResponseWriter, r *http.Request) error {
	probe := probeWriter{header: make(http.Header)}
	h.ServeHTTP(&probe, r)
	if probe.status != http.StatusMethodNotAllowed {
		return fault.New(fault.NotFound, "there is nothing at %s; see /docs for what there is", r.URL.Path)
	}
	allow := probe.header.Get("Allow")
	w.Header().Set("Allow", allow)
	return fault.New(fault.MethodNotAllowed, "%s is not possible at %s; use %s", r.Method, r.URL.Path, allow)
}

// probeWriter keeps the status and the header of an answer and drops the rest.
type probeWriter struct {
	header http.Header
	status int
}

func (p *probeWriter) Header() http.Header         { return p.header }
func (p *probeWriter) Write(b []byte) (int, error) { return len(b), nil }
func (p *probeWriter) WriteHeader(status int)      { p.status = status }

// headerHas reports whether a header with a list of words has this one, in any case.
func headerHas(h http.Header, name, word string) bool {
	for _, line := range h.Values(name) {
		for part := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(part), word) {
				return true
			}
		}
	}
	return false
}
