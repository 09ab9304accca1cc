// Package fault is the one error type of Wrenn and its mapping to HTTP and Connect.
//
// An error has a code, a message that is safe and useful for the person who made the
// request, and a hidden cause for the log. Every floor makes its errors here, and only
// here are codes turned into statuses. The package must not know who uses it.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Code says what kind of thing went wrong, as clients of the native API read it in
// {"error":{"code":…}}.
type Code string

// The codes, each with the HTTP status that it answers with.
const (
	InvalidRequest   Code = "invalid_request"    // 400
	Unauthorized     Code = "unauthorized"       // 401
	Forbidden        Code = "forbidden"          // 403
	NotFound         Code = "not_found"          // 404
	MethodNotAllowed Code = "method_not_allowed" // 405
	NotAcceptable    Code = "not_acceptable"     // 406
	Conflict         Code = "conflict"           // 409, what is to be made exists
	InvalidState     Code = "invalid_state"      // 409, not possible in this state
	PayloadTooLarge  Code = "payload_too_large"  // 413
	RateLimited      Code = "rate_limited"       // 429
	Canceled         Code = "canceled"           // 499, the client went away
	Internal         Code = "internal_error"     // 500
	Unknown          Code = "unknown_error"      // 500, what the E2B contract gives no better name
	NotImplemented   Code = "not_implemented"    // 501
	AgentError       Code = "agent_error"        // 502, the guest daemon failed or is gone
	HostUnavailable  Code = "host_unavailable"   // 503
	DeadlineExceeded Code = "deadline_exceeded"  // 504
	NoSpace          Code = "insufficient_space" // 507
)

// Error is an error with a code. Its zero value is not useful; make one with New or
// Wrap. It is immutable and so safe to share.
type Error struct {
	code    Code
	message string
	cause   error
}

// New returns an error with a public message, formatted as by fmt.Sprintf. The message
// says what was wrong and, where it is not plain, what to do next.
func New(code Code, format string, args ...any) *Error {
	return &Error{code: code, message: fmt.Sprintf(format, args...)}
}

// Wrap is New with a cause that is logged and never shown to the public.
func Wrap(cause error, code Code, format string, args ...any) *Error {
	return &Error{code: code, message: fmt.Sprintf(format, args...), cause: cause}
}

// Error is for the log: it contains the cause.
func (e *Error) Error() string {
	if e.cause == nil {
		return e.message
	}
	return e.message + ": " + e.cause.Error()
}

// Unwrap returns the hidden cause.
func (e *Error) Unwrap() error { return e.cause }

// Code returns the error's code.
func (e *Error) Code() Code { return e.code }

// Message returns the public message.
func (e *Error) Message() string { return e.message }

// CodeOf returns the code of the outermost Error in err's chain. A context that ended
// is Canceled or DeadlineExceeded, anything else Internal. CodeOf(nil) is "".
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.code
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Internal
}

// MessageOf returns what the public may read of err: the message of the outermost Error
// in its chain, and of any other error nothing but its kind.
func MessageOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.message
	}
	switch CodeOf(err) {
	case Canceled:
		return "the request was canceled"
	case DeadlineExceeded:
		return "the request took too long"
	}
	return "internal error; the server's log has the details"
}

// Is reports whether err's code is code.
func Is(err error, code Code) bool { return CodeOf(err) == code }
