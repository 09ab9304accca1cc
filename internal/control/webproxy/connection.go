package webproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
)

type connectionKey struct{}

// ConnContext is for http.Server.ConnContext: it lets an answer that breaks off end in a
// reset. A connection that is merely closed looks like a proper end where an answer has
// neither a length nor chunks.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// resetOnAbort makes what a handler panics with, when that aborts its answer, a reset.
func resetOnAbort(r *http.Request, panicked any) {
	if err, ok := panicked.(error); !ok || !errors.Is(err, http.ErrAbortHandler) || r.ProtoMajor != 1 {
		return
	}
	conn, _ := r.Context().Value(connectionKey{}).(net.Conn)
	if secured, under := conn.(*tls.Conn); under {
		conn = secured.NetConn()
	}
	if tcp, under := conn.(interface{ SetLinger(sec int) error }); under {
		_ = tcp.SetLinger(0) // a closed one has ended already
	}
}
