package fault

import (
	"context"
	"errors"

	"connectrpc.com/connect"
)

var connectCodes = map[Code]connect.Code{
	InvalidRequest:   connect.CodeInvalidArgument,
	Unauthorized:     connect.CodeUnauthenticated,
	Forbidden:        connect.CodePermissionDenied,
	NotFound:         connect.CodeNotFound,
	MethodNotAllowed: connect.CodeUnimplemented,
	NotAcceptable:    connect.CodeInvalidArgument,
	Conflict:         connect.CodeAlreadyExists,
	InvalidState:     connect.CodeFailedPrecondition,
	PayloadTooLarge:  connect.CodeResourceExhausted,
	RateLimited:      connect.CodeResourceExhausted,
	Canceled:         connect.CodeCanceled,
	Internal:         connect.CodeInternal,
	Unknown:          connect.CodeUnknown,
	NotImplemented:   connect.CodeUnimplemented,
	AgentError:       connect.CodeUnavailable,
	HostUnavailable:  connect.CodeUnavailable,
	DeadlineExceeded: connect.CodeDeadlineExceeded,
	NoSpace:          connect.CodeResourceExhausted,
}

var fromConnectCodes = map[connect.Code]Code{
	connect.CodeInvalidArgument:    InvalidRequest,
	connect.CodeUnauthenticated:    Unauthorized,
	connect.CodePermissionDenied:   Forbidden,
	connect.CodeNotFound:           NotFound,
	connect.CodeAlreadyExists:      Conflict,
	connect.CodeFailedPrecondition: InvalidState,
	connect.CodeResourceExhausted:  RateLimited,
	connect.CodeCanceled:           Canceled,
	connect.CodeUnimplemented:      NotImplemented,
	connect.CodeUnavailable:        HostUnavailable,
	connect.CodeDeadlineExceeded:   DeadlineExceeded,
}

// codeKey is the metadata under which a Connect error carries its own Code, since
// several codes share one Connect code.
const codeKey = "Wrenn-Error-Code"

// ToConnect returns err as a Connect error with the public message only. A nil error
// stays nil.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	var already *connect.Error
	var own *Error
	if errors.As(err, &already) && !errors.As(err, &own) {
		return already
	}
	code := CodeOf(err)
	cc, ok := connectCodes[code]
	if !ok {
		cc = connect.CodeInternal
	}
	ce := connect.NewError(cc, errors.New(MessageOf(err)))
	ce.Meta().Set(codeKey, string(code))
	return ce
}

// FromConnect returns a Connect error as an Error with the code that it had on the other
// side. Any other error, and nil, is returned as it is.
func FromConnect(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	code := Code(ce.Meta().Get(codeKey))
	if _, known := statuses[code]; !known {
		if code, known = fromConnectCodes[ce.Code()]; !known {
			code = Internal
		}
	}
	return Wrap(err, code, "%s", ce.Message())
}

// Interceptor maps errors at the edge of a Connect service: on a handler it turns what
// the service returns into Connect errors, on a client what comes back into Errors.
func Interceptor() connect.Interceptor { return interceptor{} }

type interceptor struct{}

func (interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if req.Spec().IsClient {
			return resp, FromConnect(err)
		}
		return resp, ToConnect(err)
	}
}

func (interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return ToConnect(next(ctx, conn))
	}
}

func (interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return clientConn{next(ctx, spec)}
	}
}

// clientConn maps the errors of a stream's client side.
type clientConn struct{ connect.StreamingClientConn }

func (c clientConn) Send(m any) error    { return FromConnect(c.StreamingClientConn.Send(m)) }
func (c clientConn) Receive(m any) error { return FromConnect(c.StreamingClientConn.Receive(m)) }
