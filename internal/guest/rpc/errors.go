package rpc

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// handler is an HTTP handler that returns what went wrong. It must not have written
// anything when it does.
type handler func(http.ResponseWriter, *http.Request) error

// answer makes h an http.Handler: it writes the error that h returns, and logs it if the
// daemon is to blame.
func (s *Server) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			logFailure(r.Context(), s.logger, r.Method+" "+r.URL.Path, err)
			writeError(w, err)
		}
	})
}

// writeError answers err in the shape that the SDKs read on plain HTTP paths, which is
// another than the native API's.
func writeError(w http.ResponseWriter, err error) {
	writeStatus(w, fault.HTTPStatus(fault.CodeOf(err)), fault.MessageOf(err))
}

// writeStatus is writeError for a status that stands for no code.
func writeStatus(w http.ResponseWriter, status int, message string) {
	body := struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message}
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone; there is nobody left to tell
}

// logFailure logs an error with its hidden cause, unless it is the caller's own.
func logFailure(ctx context.Context, logger *slog.Logger, operation string, err error) {
	if fault.Is(err, fault.Internal) && ctx.Err() == nil {
		logger.ErrorContext(ctx, "request failed", "operation", operation, "err", err)
	}
}

// failureLog is the interceptor that does for Connect services what answer does for HTTP
// handlers: log an error once, at the boundary.
type failureLog struct{ logger *slog.Logger }

func (l failureLog) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			logFailure(ctx, l.logger, req.Spec().Procedure, err)
		}
		return resp, err
	}
}

func (l failureLog) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, conn)
		if err != nil {
			logFailure(ctx, l.logger, conn.Spec().Procedure, err)
		}
		return err
	}
}

func (l failureLog) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}
