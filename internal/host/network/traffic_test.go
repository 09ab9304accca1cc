package network

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// What goes through a link is counted each way, from nothing on for each taking of a slot.
func TestWhatPassesIsCounted(t *testing.T) {
	const upBytes, downBytes, slack = 2 << 20, 1 << 20, 1 << 18
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	passed := func() (up, down uint64) {
		t.Helper()
		n.counts.at = time.Time{} // it is not to be what it was a moment ago
		up, down, err := n.Passed(slot)
		if err != nil {
			t.Fatal(err)
		}
		return up, down
	}
	within := func(what string, got, want uint64) {
		t.Helper()
		if got < want || got > want+slack {
			t.Errorf("%s: %d bytes, want %d", what, got, want)
		}
	}
	upBefore, downBefore := passed()
	world := newInternet(t)
	listener := listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String())
	transfer(t, upBytes, listener, func(to netip.AddrPort) (net.Conn, error) { return dialFrom(t, slot.Namespace, "tcp4", to) })
	listener = listenIn(t, slot.Namespace, netip.AddrPortFrom(slot.Guest.Addr(), 0).String())
	transfer(t, downBytes, listener, func(to netip.AddrPort) (net.Conn, error) { return net.Dial("tcp4", to.String()) })
	up, down := passed()
	within("up", up-upBefore, upBytes)
	within("down", down-downBefore, downBytes)

	if err := n.Park(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	n.counts.at = time.Time{}
	if _, _, err := n.Passed(slot); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a parked slot: %v", err)
	}
	var err error
	if slot, err = n.Unpark(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	up, down = passed()
	within("up, anew", up, 0)
	within("down, anew", down, 0)
	if _, _, err := n.Passed(Slot{}); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("of no slot: %v", err)
	}
}

// BenchmarkCounts is one reading for 200 slots.
func BenchmarkCounts(b *testing.B) {
	text := []byte("Inter-|   Receive\n face |bytes\n")
	for i := range 200 {
		text = fmt.Appendf(text, "wrn%d: 1234567%d 100 0 0 0 0 0 0 7654321%d 100 0 0 0 0 0 0\n", i, i, i)
	}
	into := map[int]passed{}
	for b.Loop() {
		if err := readCounts(text, into); err != nil || len(into) != 200 || into[7] != (passed{12345677, 76543217}) {
			b.Fatal(len(into), into[7], err)
		}
	}
}

func TestCountsThatCannotBeRead(t *testing.T) {
	for _, text := range []string{"wrn1: x 0 0 0 0 0 0 0 2\n", "wrn1: 1 0 0\n"} {
		if err := readCounts([]byte(text), map[int]passed{}); err == nil {
			t.Errorf("%q was read", text)
		}
	}
	into := map[int]passed{}
	if err := readCounts([]byte("  eth0: 5 0 0\n wrnx: 1\nwrn3:1 0 0 0 0 0 0 0 2 0\n"), into); err != nil || len(into) != 1 || into[3] != (passed{1, 2}) {
		t.Errorf("%v, %v", into, err)
	}
}
