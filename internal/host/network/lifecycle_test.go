package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// crash makes n forget everything, as if its process had been killed: only what the
// kernel and the lease directory know stays.
func crash(n *Network) {
	for _, server := range n.holdings.close() {
		server.Close()
	}
	_ = n.firewall.close()
}

func TestSweepAfterCrashLeavesNothing(t *testing.T) {
	c := newConfig(t)
	first := open(t, c)
	kept, lost := mustAcquire(t, first), mustAcquire(t, first)
	// A crash at the very beginning of a third: only the lease is there.
	bare := first.plan.slot((lost.Index + 1) % first.plan.capacity())
	if _, claimed, err := first.leases.claim(bare.Index); err != nil || !claimed {
		t.Fatalf("claim: %t, %v", claimed, err)
	}
	crash(first)

	second, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	fresh := mustAcquire(t, second)
	if err := second.Sweep(t.Context(), []int{kept.Index}); err != nil {
		t.Fatal(err)
	}
	for _, slot := range []Slot{lost, bare} {
		if got := traces(t, second, slot); len(got) > 0 {
			t.Errorf("slot %d: left are %v", slot.Index, got)
		}
	}
	for _, slot := range []Slot{kept, fresh} {
		if got := traces(t, second, slot); len(got) != 3 {
			t.Errorf("slot %d is in use, but left are only %v", slot.Index, got)
		}
	}
	if got := elements(t, second.firewall); got != 6 {
		t.Errorf("set elements: %d, want 3 for each of 2 slots", got)
	}
	if err := errors.Join(second.Sweep(t.Context(), nil), second.Release(t.Context(), fresh)); err != nil {
		t.Fatal(err)
	}
	if got := elements(t, second.firewall); got != 0 {
		t.Errorf("set elements at the end: %d", got)
	}
}

func TestGuestsStayIsolatedWithoutUs(t *testing.T) {
	c := newConfig(t)
	first := open(t, c)
	slot := mustAcquire(t, first)
	host := netip.AddrPortFrom(hostAddr(t), greet(t, listenIn(t, "", "0.0.0.0:0")).Port())
	refused := func(when string) {
		t.Helper()
		if _, err := dialFrom(t, slot.Namespace, "tcp4", host); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", when, err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	refused("after Close")
	if _, err := first.Acquire(t.Context()); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("Acquire after Close: %v", err)
	}
	second, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	refused("after Open, before Adopt")
	for range 2 {
		if err := second.Adopt(t.Context(), slot); err != nil {
			t.Fatalf("Adopt: %v", err)
		}
	}
	refused("after Adopt")
	conn, err := dialFrom(t, slot.Namespace, "tcp4", netip.AddrPortFrom(slot.Gateway, dnsPort))
	if err != nil {
		t.Fatalf("no DNS after Adopt: %v", err)
	}
	_ = conn.Close()
	if err := second.Release(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if err := second.Adopt(t.Context(), slot); !fault.Is(err, fault.NotFound) {
		t.Errorf("Adopt of a slot that is gone: %v", err)
	}
	if second.holdings.has(slot.Index) {
		t.Error("a failed Adopt holds the slot")
	}
}

func TestAdoptRefusesWhatIsNotWhole(t *testing.T) {
	c := newConfig(t)
	n := open(t, c)
	slot := mustAcquire(t, n)
	crash(n)
	again, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	moved := slot
	moved.Guest = netip.PrefixFrom(slot.Guest.Addr().Next(), slotBits)
	if err := again.Adopt(t.Context(), moved); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a slot with other addresses: %v", err)
	}
	if err := removeLink(slot.Link); err != nil {
		t.Fatal(err)
	}
	if err := again.Adopt(t.Context(), slot); !fault.Is(err, fault.NotFound) {
		t.Errorf("a slot without its link: %v", err)
	}
	if err := again.Release(t.Context(), slot); err != nil {
		t.Errorf("Release of half a slot: %v", err)
	}
	if got := traces(t, again, slot); len(got) > 0 {
		t.Errorf("left are %v", got)
	}
}

func TestSweepRemovesInstancesWhoseDataIsGone(t *testing.T) {
	deadConfig := newConfig(t)
	deadConfig.DataDir = filepath.Join(deadConfig.DataDir, "data")
	if err := os.Mkdir(deadConfig.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	dead := open(t, deadConfig)
	orphan := mustAcquire(t, dead)
	crash(dead)
	living := open(t, newConfig(t))
	if err := living.Sweep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := traces(t, dead, orphan); len(got) != 3 {
		t.Fatalf("the owner's data directory is there, but left are only %v", got)
	}
	if err := os.Remove(deadConfig.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := living.Sweep(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := traces(t, dead, orphan); len(got) > 0 {
		t.Errorf("left are %v", got)
	}
	if hasTable(t, deadConfig.Instance) {
		t.Error("the table is left")
	}
	if _, err := os.Stat(dead.leases.ownerPath(deadConfig.Instance)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the owner's file is left: %v", err)
	}
}

func TestAcquireRemovesLeftoversWithoutALease(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	crash(n)
	if err := n.leases.drop(slot.Index); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), n.config)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	got, claimed, err := again.tryAcquire(t.Context(), slot.Index)
	if err != nil || !claimed || got.Index != slot.Index || !n.plan.made(got) {
		t.Fatalf("got %+v, %t, %v, want the same slot", got, claimed, err)
	}
	if err := again.Release(t.Context(), got); err != nil {
		t.Fatal(err)
	}
}

func TestConfigurePutsBackWhatTheRuntimeTakes(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	guest := greet(t, listenIn(t, slot.Namespace, "0.0.0.0:0"))
	target := netip.AddrPortFrom(slot.Guest.Addr(), guest.Port()).String()
	ns, err := openNamespace(slot.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for range 2 {
		link, err := ns.routes.LinkByName(guestLink)
		if err != nil {
			t.Fatal(err)
		}
		if err := ns.routes.AddrDel(link, &netlink.Addr{IPNet: ipNet(slot.Guest)}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := n.Configure(t.Context(), slot); err != nil {
				t.Fatalf("Configure: %v", err)
			}
		}
		conn, err := net.DialTimeout("tcp4", target, dialTimeout)
		if err != nil {
			t.Fatalf("after Configure: %v", err)
		}
		_ = conn.Close()
		routes, err := ns.routes.RouteList(link, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		if !hasDefaultRoute(routes, slot.Gateway) {
			t.Errorf("no default route by %v in %v", slot.Gateway, routes)
		}
		addrs, err := ns.routes.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		if len(addrs) != 1 || addrs[0].IPNet.String() != slot.Guest.String() {
			t.Errorf("the guest has the addresses %v, want %v alone", addrs, slot.Guest)
		}
	}
	if err := n.Release(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	if err := n.Configure(t.Context(), slot); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("Configure of a slot that is gone: %v", err)
	}
}

func hasDefaultRoute(routes []netlink.Route, gateway netip.Addr) bool {
	for _, route := range routes {
		if routePrefix(route.Dst).Bits() == 0 && route.Gw.String() == gateway.String() {
			return true
		}
	}
	return false
}

func TestHardwareAddressesStayWithTheSlot(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	link, err := netlink.LinkByName(slot.Link)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := link.Attrs().HardwareAddr.String(), hardwareAddr(gatewayMAC, slot.Index).String(); got != want {
		t.Errorf("gateway: %s, want %s", got, want)
	}
	if link.Attrs().MTU != n.mtu {
		t.Errorf("MTU %d, want the host's %d", link.Attrs().MTU, n.mtu)
	}
}

func TestFullNetworkSaysSo(t *testing.T) {
	c := newConfig(t)
	c.Prefix = netip.MustParsePrefix("10.114.250.0/29")
	n := open(t, c)
	for range n.plan.capacity() + 1 {
		_, err := n.Acquire(t.Context())
		if err == nil {
			continue
		}
		if !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), "all 2 network slots") {
			t.Errorf("the error does not say it: %v", err)
		}
		return
	}
	t.Error("a network of 2 slots gave 3")
}

func TestFailedAcquireLeavesNothing(t *testing.T) {
	c := newConfig(t)
	c.Prefix = netip.MustParsePrefix("10.115.0.0/20")
	n := open(t, c)
	// Someone has the port that the next slot's DNS forwarder needs.
	next := n.plan.slot(int(n.cursor.Load()) % n.plan.capacity())
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	gateway := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(next.Gateway, 32))}
	if err := netlink.AddrAdd(lo, gateway); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.AddrDel(lo, gateway) })
	listener, err := net.Listen("tcp4", netip.AddrPortFrom(next.Gateway, dnsPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, err = n.Acquire(t.Context())
	if !fault.Is(err, fault.HostUnavailable) || !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("Acquire: %v", err)
	}
	if got := elements(t, n.firewall); got != 0 {
		t.Errorf("set elements: %d", got)
	}
	if left, err := n.leases.ours(); err != nil || len(left) > 0 {
		t.Errorf("leases: %v, %v", left, err)
	}
	if got := traces(t, n, next); len(got) > 0 {
		t.Errorf("left are %v", got)
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Acquire(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Acquire with an ended context: %v", err)
	}
}

func TestAcquireSkipsWhatTheHostUses(t *testing.T) {
	n := open(t, newConfig(t))
	slot := n.plan.slot(77)
	n.plan.taken = []netip.Prefix{netip.PrefixFrom(slot.Guest.Addr(), 32)}
	if _, claimed, err := n.tryAcquire(t.Context(), slot.Index); claimed || err != nil {
		t.Errorf("claimed %t, %v", claimed, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	const workers, rounds = 8, 6
	// Two instances compete, as two processes would.
	networks := []*Network{open(t, newConfig(t)), open(t, newConfig(t))}
	networks[1].cursor.Store(networks[0].cursor.Load())
	var mu sync.Mutex
	used := make(map[int]bool)
	mark := func(slot Slot, now bool) error {
		mu.Lock()
		defer mu.Unlock()
		if used[slot.Index] == now {
			return errors.New("slot " + strconv.Itoa(slot.Index) + " was given to two at once")
		}
		used[slot.Index] = now
		return nil
	}
	var group errgroup.Group
	for worker := range workers {
		n := networks[worker%len(networks)]
		group.Go(func() error {
			for range rounds {
				slot, err := n.Acquire(t.Context())
				if err != nil {
					return err
				}
				if err := mark(slot, true); err != nil {
					return err
				}
				if err := n.Configure(t.Context(), slot); err != nil {
					return err
				}
				// From here on another may have it.
				if err := mark(slot, false); err != nil {
					return err
				}
				// Two at once: the later one finds nothing to do, or someone else's slot.
				var twice errgroup.Group
				for range 2 {
					twice.Go(func() error { return n.Release(t.Context(), slot) })
				}
				if err := twice.Wait(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		if got := elements(t, n.firewall); got != 0 {
			t.Errorf("set elements left: %d", got)
		}
	}
}

// TestSweepFinishesEveryHalfBuiltSlot stops building a slot after each step in turn, as
// kill -9 does.
func TestSweepFinishesEveryHalfBuiltSlot(t *testing.T) {
	c := newConfig(t)
	n := open(t, c)
	steps := []struct {
		name string
		do   func(Slot) error
	}{
		{"lease", func(slot Slot) error { _, _, err := n.leases.claim(slot.Index); return err }},
		{"firewall", n.firewall.admit},
		{"namespace's file", func(slot Slot) error {
			return errors.Join(os.MkdirAll(namespaceDir, 0o755), os.WriteFile(slot.Namespace, nil, 0o444))
		}},
		{"namespace", func(slot Slot) error {
			if err := removeFile(slot.Namespace); err != nil {
				return err
			}
			ns, err := createNamespace(slot.Namespace)
			if err == nil {
				ns.Close()
			}
			return err
		}},
		{"link", func(slot Slot) error {
			return inNamespace(t.Context(), slot, func(ns *namespace) error { return createLink(slot, n.mtu, ns) })
		}},
	}
	first := int(n.cursor.Load())
	for last := range steps {
		slot := n.plan.slot((first + last) % n.plan.capacity())
		for _, step := range steps[:last+1] {
			if err := step.do(slot); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
		again, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(again.Sweep(t.Context(), nil), again.Close()); err != nil {
			t.Errorf("killed after the %s: %v", steps[last].name, err)
		}
		if got := traces(t, n, slot); len(got) > 0 {
			t.Errorf("killed after the %s: left are %v", steps[last].name, got)
		}
		if hasTable(t, c.Instance) {
			t.Errorf("killed after the %s: the table is left", steps[last].name)
		}
		if err := n.firewall.install(nil); err != nil {
			t.Fatal(err)
		}
	}
}
