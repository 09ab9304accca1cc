package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// talk is a TCP connection whose far end echoes, and which must not break.
type talk struct {
	net.Conn
	name string
}

// echo answers each byte with itself, until the test ends.
func echo(t testing.TB, listener net.Listener) netip.AddrPort {
	t.Helper()
	conns := make(chan net.Conn, 64)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				close(conns)
				return
			}
			conns <- conn
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		for conn := range conns {
			_ = conn.Close()
		}
	})
	return netip.MustParseAddrPort(listener.Addr().String())
}

// connect returns conn once an echo has come back over it.
func connect(t testing.TB, name string, conn net.Conn, err error) talk {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := talk{conn, name}
	c.goesOn(t)
	return c
}

func (c talk) say(t testing.TB) {
	t.Helper()
	if _, err := c.Write([]byte{'.'}); err != nil {
		t.Fatalf("%s: write: %v", c.name, err)
	}
}

func (c talk) hears(timeout time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func (c talk) goesOn(t testing.TB) {
	t.Helper()
	c.say(t)
	if err := c.hears(patience); err != nil {
		t.Fatalf("%s: no echo: %v", c.name, err)
	}
}

// talks opens a connection each way: of the guest to the world, and of the host to the
// guest.
func talks(t testing.TB, slot Slot, world internet) []talk {
	t.Helper()
	server := echo(t, listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String()))
	guest := echo(t, listenIn(t, slot.Namespace, "0.0.0.0:0"))
	out, err := dialFrom(t, slot.Namespace, "tcp4", server)
	outward := connect(t, "guest to world", out, err)
	in, err := net.DialTimeout("tcp4", netip.AddrPortFrom(slot.Guest.Addr(), guest.Port()).String(), dialTimeout)
	return []talk{outward, connect(t, "host to guest", in, err)}
}

func TestHoldStopsEverythingAndBreaksNothing(t *testing.T) {
	n := open(t, newConfig(t))
	slot, other := mustAcquire(t, n), mustAcquire(t, n)
	world := newInternet(t)
	open, others := talks(t, slot, world), talks(t, other, world)
	for range 2 {
		if err := n.Hold(t.Context(), slot); err != nil {
			t.Fatal(err)
		}
	}
	if on, err := n.Held(t.Context(), slot); err != nil || !on {
		t.Errorf("Held: %t, %v", on, err)
	}
	for _, c := range open {
		c.say(t)
		if err := c.hears(dropTimeout); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s, held: %v, want silence", c.name, err)
		}
	}
	for name, to := range map[string]netip.AddrPort{
		"its gateway's DNS": netip.AddrPortFrom(slot.Gateway, dnsPort), "the world": netip.AddrPortFrom(world.server, 9),
		"what is refused": netip.AddrPortFrom(hostAddr(t), 9),
	} {
		_, err := inside(t, slot.Namespace, func() (net.Conn, error) { return net.DialTimeout("tcp4", to.String(), dropTimeout) })
		if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("a held guest to %s: %v, want a timeout", name, err)
		}
	}
	for _, c := range others {
		c.goesOn(t)
	}
	for range 2 {
		if err := n.Unhold(t.Context(), slot); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range open {
		if err := c.hears(patience); err != nil {
			t.Errorf("%s: what was sent while held does not arrive: %v", c.name, err)
		}
		c.goesOn(t)
	}
	if on, err := n.Held(t.Context(), slot); err != nil || on {
		t.Errorf("Held after Unhold: %t, %v", on, err)
	}
}

// A guest that is written down and ended says farewell to its peers. They must not hear it.
func TestHeldFarewellsAreNotHeard(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	world := newInternet(t)
	listener := listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String())
	defer listener.Close()
	guest, err := dialFrom(t, slot.Namespace, "tcp4", netip.MustParseAddrPort(listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if err := n.Hold(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	// Without lingering a close is a reset.
	if err := errors.Join(guest.(*net.TCPConn).SetLinger(0), guest.Close()); err != nil {
		t.Fatal(err)
	}
	if err := (talk{Conn: peer}).hears(dropTimeout); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the peer heard %v", err)
	}
	if got := connections(t, slot.Guest.Addr()); got != 1 {
		t.Errorf("the kernel knows %d connections of the guest, want 1", got)
	}
}

// TestHoldAndRulesOutliveUs replaces the table over and over, as starts of the agent do,
// while one guest that is held and one that is not send all the time.
func TestHoldAndRulesOutliveUs(t *testing.T) {
	const starts = 20
	c := newConfig(t)
	first := open(t, c)
	free, shut := mustAcquire(t, first), mustAcquire(t, first)
	if err := first.Hold(t.Context(), shut); err != nil {
		t.Fatal(err)
	}
	world := newInternet(t)
	outward := talks(t, free, world)
	crash(first)

	fromHeld := receiveFrom(t, world)
	fromFree := receiveFrom(t, world)
	closed := listenOnExtraAddress(t, world, "10.200.3.5")
	leaked := receiveAt(t, world, closed)
	flood(t, shut, fromHeld.at)
	flood(t, free, fromFree.at)
	flood(t, free, leaked.at)
	for range starts {
		again, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, slot := range []Slot{free, shut} {
			if err := again.Adopt(t.Context(), slot); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range outward {
			c.goesOn(t)
		}
		if on, err := again.Held(t.Context(), shut); err != nil || !on {
			t.Fatalf("Held after a start: %t, %v", on, err)
		}
		before := fromFree.count.Load()
		eventually(t, "packets of the guest that is not held", func() bool { return fromFree.count.Load() > before })
		crash(again)
	}
	if got := fromHeld.count.Load(); got != 0 {
		t.Errorf("%d packets of a held guest got through", got)
	}
	if got := leaked.count.Load(); got != 0 {
		t.Errorf("%d packets to a private range got through", got)
	}
	last, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if err := errors.Join(last.Adopt(t.Context(), shut), last.Unhold(t.Context(), shut)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "packets of the guest that was held", func() bool { return fromHeld.count.Load() > 0 })
}

func TestSlotsThatAreGoneAreNotTouched(t *testing.T) {
	n := open(t, newConfig(t))
	old := mustAcquire(t, n)
	if err := n.Release(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	slot, err := n.AcquireSlot(t.Context(), old.Index)
	if err != nil {
		t.Fatal(err)
	}
	if slot.Index != old.Index || slot.Lease == old.Lease {
		t.Fatalf("got %+v, want another lease of slot %d", slot, old.Index)
	}
	if err := n.Hold(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if err := n.Release(t.Context(), old); err != nil {
		t.Errorf("Release of an old lease: %v", err)
	}
	for name, call := range map[string]func(context.Context, Slot) error{
		"Hold": n.Hold, "Unhold": n.Unhold, "Park": n.Park,
		"SetRate": func(ctx context.Context, s Slot) error { return n.SetRate(ctx, s, 0, 0) },
		"Held":    func(ctx context.Context, s Slot) error { _, err := n.Held(ctx, s); return err },
	} {
		if err := call(t.Context(), old); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s of an old lease: %v", name, err)
		}
		if err := call(t.Context(), Slot{}); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s of no slot: %v", name, err)
		}
	}
	if got := traces(t, n, slot); len(got) != 3 {
		t.Errorf("of the new lease there are only %v", got)
	}
	if on, err := n.Held(t.Context(), slot); err != nil || !on {
		t.Errorf("the new lease is not held as it was: %t, %v", on, err)
	}
	if err := n.Release(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if got := elements(t, n.firewall); got != 0 {
		t.Errorf("set elements left: %d", got)
	}
}

// receiver counts the packets that come to a port of the world.
type receiver struct {
	at    netip.AddrPort
	count atomic.Int64
}

func receiveFrom(t testing.TB, world internet) *receiver {
	t.Helper()
	return receiveAt(t, world, netip.AddrPortFrom(world.server, 0))
}

func receiveAt(t testing.TB, world internet, at netip.AddrPort) *receiver {
	t.Helper()
	packets, err := inside(t, world.namespace, func() (net.PacketConn, error) { return net.ListenPacket("udp4", at.String()) })
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{at: netip.MustParseAddrPort(packets.LocalAddr().String())}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 64)
		for {
			if _, _, err := packets.ReadFrom(buffer); err != nil {
				return
			}
			r.count.Add(1)
		}
	}()
	t.Cleanup(func() {
		_ = packets.Close()
		<-done
	})
	return r
}

// flood sends packets from the slot, until the test ends, fast enough to meet any moment
// without rules.
func flood(t testing.TB, slot Slot, to netip.AddrPort) {
	t.Helper()
	conn, err := inside(t, slot.Namespace, func() (*net.UDPConn, error) { return net.ListenUDP("udp4", nil) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Microsecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			// A refusal comes back as an error of a later send.
			_, _ = conn.WriteToUDPAddrPort([]byte("x"), to)
			<-tick.C
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = conn.Close()
	})
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("no %s within %v", what, patience)
		case <-tick.C:
		}
	}
}
