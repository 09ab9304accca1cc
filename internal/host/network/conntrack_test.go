package network

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// connections counts what the kernel remembers of a guest.
func connections(t testing.TB, guest netip.Addr) int {
	t.Helper()
	flows, err := untilWhole(func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	})
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, flow := range flows {
		if flow.Forward.SrcIP.String() == guest.String() || flow.Forward.DstIP.String() == guest.String() {
			count++
		}
	}
	return count
}

// quiet leaves the callers of listener waiting: a connection that says something later
// would be noticed by the kernel anew.
func quiet(t testing.TB, listener net.Listener) netip.AddrPort {
	t.Helper()
	t.Cleanup(func() { _ = listener.Close() })
	return netip.MustParseAddrPort(listener.Addr().String())
}

func TestConnectionsAreForgotten(t *testing.T) {
	for name, forget := range map[string]func(netip.Addr) error{
		"by filter": func(guest netip.Addr) error {
			return errors.Join(forgetMatching(guest, nl.CTA_IP_V4_SRC, filterSource), forgetMatching(guest, nl.CTA_IP_V4_DST, filterDestination))
		},
		"one by one":  func(guest netip.Addr) error { return forgetOneByOne(guest) },
		"as released": func(guest netip.Addr) error { return forgetConnections(guest) },
	} {
		t.Run(name, func(t *testing.T) {
			n := open(t, newConfig(t))
			slot, other := mustAcquire(t, n), mustAcquire(t, n)
			world := newInternet(t)
			server := quiet(t, listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String()))
			for _, s := range []Slot{slot, other} {
				out, err := dialFrom(t, s.Namespace, "tcp4", server)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = out.Close() })
				guest := quiet(t, listenIn(t, s.Namespace, "0.0.0.0:0"))
				in, err := net.DialTimeout("tcp4", netip.AddrPortFrom(s.Guest.Addr(), guest.Port()).String(), dialTimeout)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = in.Close() })
				if got := connections(t, s.Guest.Addr()); got != 2 {
					t.Fatalf("the kernel knows %d connections of a guest, want 2", got)
				}
			}
			if err := forget(slot.Guest.Addr()); err != nil {
				if name == "by filter" && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
					t.Skipf("this kernel cannot: %v", err)
				}
				t.Fatal(err)
			}
			if got := connections(t, slot.Guest.Addr()); got != 0 {
				t.Errorf("%d connections are left", got)
			}
			if got := connections(t, other.Guest.Addr()); got != 2 {
				t.Errorf("another guest has %d connections left of 2", got)
			}
		})
	}
}
