package dnsforward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"
)

// An address that is in use for a moment only is waited for.
func TestWaitsForAnAddressThatIsInUse(t *testing.T) {
	at := netip.AddrPortFrom(loopback(), 53)
	for name, listen := range map[string]func() (io.Closer, error){
		"udp": func() (io.Closer, error) { return net.ListenPacket("udp4", at.String()) },
		"tcp": func() (io.Closer, error) { return net.Listen("tcp4", at.String()) },
	} {
		before, err := listen()
		if err != nil {
			t.Fatal(err)
		}
		release := time.AfterFunc(busyRetry, func() { _ = before.Close() })
		server, err := New("", slog.New(slog.DiscardHandler)).Serve(t.Context(), at, loopback())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		server.Close()
		release.Stop()
	}
	// For a context that has ended it is not waited.
	before, err := net.ListenPacket("udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	ctx, cancel := context.WithTimeout(t.Context(), busyRetry)
	defer cancel()
	if _, err := New("", slog.New(slog.DiscardHandler)).Serve(ctx, at, loopback()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("in use for ever: %v", err)
	}
}
