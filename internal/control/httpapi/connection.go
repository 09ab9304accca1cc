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
	state, open, seen := poll(ctx, unix.POLLRDHUP)
	return seen && (!open || state&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0)
}

// hasRoom reports whether something short that is sent over the request's connection goes
// out at once, or fails so. It is true where that cannot be seen.
func hasRoom(ctx context.Context) bool {
	state, open, seen := poll(ctx, unix.POLLOUT)
	return !seen || !open || state != 0
}

// poll returns which of some events the request's connection has, whether it is open on
// this side, and whether any of this can be seen.
func poll(ctx context.Context, events int16) (state int16, open, seen bool) {
	conn, ok := ctx.Value(connectionKey{}).(syscall.Conn)
	if !ok {
		return 0, false, false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, false, true
	}
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		if n, err := unix.Poll(fds, 0); err == nil && n > 0 {
			state = fds[0].Revents
		}
	})
	return state, err == nil, true
}
