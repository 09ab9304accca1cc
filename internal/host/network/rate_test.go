package network

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// swallow counts what comes to a listener's one caller and then closes the connection.
func swallow(t testing.TB, listener net.Listener) (netip.AddrPort, <-chan int64) {
	t.Helper()
	counts := make(chan int64, 1)
	go func() {
		defer listener.Close()
		conn, err := listener.Accept()
		if err != nil {
			counts <- 0
			return
		}
		defer conn.Close()
		count, _ := io.Copy(io.Discard, conn)
		counts <- count
	}()
	return netip.MustParseAddrPort(listener.Addr().String()), counts
}

// transfer returns the rate in bits per second at which a connection takes size bytes.
func transfer(t testing.TB, size int, listener net.Listener, dial func(netip.AddrPort) (net.Conn, error)) float64 {
	t.Helper()
	to, counts := swallow(t, listener)
	conn, err := dial(to)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, err = conn.Write(make([]byte, size))
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	if got := <-counts; got != int64(size) {
		t.Fatalf("%d bytes came of %d", got, size)
	}
	return float64(size) * bitsPerByte / time.Since(begin).Seconds()
}

func TestRateIsLimitedEachWay(t *testing.T) {
	const mbit, size = 1_000_000, 3 << 20
	n := open(t, newConfig(t))
	slot, other := mustAcquire(t, n), mustAcquire(t, n)
	world := newInternet(t)
	up := func(slot Slot) float64 {
		listener := listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String())
		return transfer(t, size, listener, func(to netip.AddrPort) (net.Conn, error) { return dialFrom(t, slot.Namespace, "tcp4", to) })
	}
	down := func(slot Slot) float64 {
		listener := listenIn(t, slot.Namespace, netip.AddrPortFrom(slot.Guest.Addr(), 0).String())
		return transfer(t, size, listener, func(to netip.AddrPort) (net.Conn, error) { return net.Dial("tcp4", to.String()) })
	}
	// A burst comes on top of the rate; and a machine that is busy is slower, never faster.
	within := func(what string, got float64, limit int64) {
		t.Helper()
		if got > 1.15*float64(limit) || got < 0.4*float64(limit) {
			t.Errorf("%s: %.1f Mbit/s, want %d", what, got/mbit, limit/mbit)
		}
	}
	free := func(what string, got float64) {
		t.Helper()
		if got < 200*mbit {
			t.Errorf("%s: %.1f Mbit/s, want no limit", what, got/mbit)
		}
	}
	for _, rates := range [][2]int64{{20 * mbit, 40 * mbit}, {60 * mbit, 30 * mbit}} {
		if err := n.SetRate(t.Context(), slot, rates[0], rates[1]); err != nil {
			t.Fatal(err)
		}
		within("up", up(slot), rates[0])
		within("down", down(slot), rates[1])
		free("another slot, up", up(other))
	}
	if err := n.SetRate(t.Context(), slot, 0, 30*mbit); err != nil {
		t.Fatal(err)
	}
	free("up without a limit", up(slot))
	within("down", down(slot), 30*mbit)
	for range 2 {
		if err := n.SetRate(t.Context(), slot, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	free("down without a limit", down(slot))
}

func TestRatesAreWhatWasAsked(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	for _, want := range []int64{minRate, 1_000_000, 1_000_000_000, 40_000_000_000} {
		if err := n.SetRate(t.Context(), slot, 0, want); err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName(slot.Link)
		if err != nil {
			t.Fatal(err)
		}
		qdiscs, err := netlink.QdiscList(link)
		if err != nil {
			t.Fatal(err)
		}
		var rates []uint64
		for _, qdisc := range qdiscs {
			if bucket, ok := qdisc.(*netlink.Tbf); ok {
				rates = append(rates, bucket.Rate*bitsPerByte)
			}
		}
		if len(rates) != 1 || rates[0] != uint64(want) {
			t.Errorf("rates of %v, want %d", rates, want)
		}
	}
	for _, wrong := range []int64{-1, 1, minRate - 1} {
		if err := n.SetRate(t.Context(), slot, wrong, 0); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("a rate of %d: %v", wrong, err)
		}
	}
}
