package main

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// What a server holds that was killed a moment ago is free only when the kernel has ended the
// last of it, which takes a while on a busy machine. So a start waits for an address, or for
// the data directory, before it says that somebody else has it.
const (
	busyTime  = 3 * time.Second
	busyRetry = 20 * time.Millisecond
	// besideTime is for what need not be had: another will do, and most likely it is another
	// server's for good.
	besideTime = 300 * time.Millisecond
	// lockTime is short, since files go at the same time as the addresses.
	lockTime = time.Second
)

// whileBusy tries until it works, fails of anything but busy, or limit has passed.
func whileBusy(ctx context.Context, limit time.Duration, busy error, try func() error) error {
	tick := time.NewTicker(busyRetry)
	defer tick.Stop()
	for end := time.Now().Add(limit); ; {
		err := try()
		if !errors.Is(err, busy) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// listen listens at a TCP address, once it is free.
func listen(ctx context.Context, address string, limit time.Duration) (l net.Listener, err error) {
	err = whileBusy(ctx, limit, unix.EADDRINUSE, func() error {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
		return err
	})
	return l, err
}
