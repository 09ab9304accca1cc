package httpapi

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

type connectionKey struct{}

// ConnContext is for http.Server.ConnContext: it lets streams see whether their client has
// hung up while they do not read what it sends.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// hungUp reports whether the other end of the request's connection has closed it. It is
// false where that cannot be seen.
func hungUp(ctx context.Context) bool {
	conn, ok := ctx.Value(connectionKey{}).(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return true // it is closed on this side
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(poll, 0)
		gone = err == nil && n > 0 && poll[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
