package hostclient

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// reached is an interceptor that tells what the host answered from not having had an
// answer: the latter is host_unavailable, whatever broke, and what broke is for the log.
type reached struct{}

func unreached(err error) error {
	if err == nil || connect.IsWireError(err) {
		return err
	}
	switch fault.CodeOf(err) {
	case fault.Canceled, fault.DeadlineExceeded:
		return err
	}
	return fault.Wrap(err, fault.HostUnavailable, "the host agent cannot be reached; it may be starting, try again in a moment")
}

func (reached) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, unreached(err)
	}
}

func (reached) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (reached) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return reachedConn{next(ctx, spec)}
	}
}

type reachedConn struct{ connect.StreamingClientConn }

func (c reachedConn) Send(m any) error { return unreached(c.StreamingClientConn.Send(m)) }

func (c reachedConn) Receive(m any) error {
	err := c.StreamingClientConn.Receive(m)
	var broke *connect.Error
	if errors.Is(err, io.EOF) && !errors.As(err, &broke) {
		return err // the stream's proper end
	}
	return unreached(err)
}
