package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// internet is a network namespace that plays the rest of the world, behind a link of the
// host with addresses from a documentation range.
type internet struct {
	namespace string
	host      netip.Addr // the host's address on that link
	server    netip.Addr // the address of the world
	link      string
}

// narrowMTU is that of the host's link to the internet, in bytes. Neither a guest nor the
// internet's servers have reason to think of it.
const narrowMTU = 1280

// newInternet makes one; it is gone at the test's end.
func newInternet(t testing.TB) internet {
	t.Helper()
	for range 20 {
		// A subnet at random, in case another test run has the same idea.
		number := rand.IntN(64)
		first := be32(netip.MustParseAddr("198.51.100.0").As4()) + uint32(number)*slotAddresses
		world := internet{
			namespace: filepath.Join(namespaceDir, "wtest-"+strconv.Itoa(number)),
			host:      addr4(first + 1), server: addr4(first + 2), link: "wtest" + strconv.Itoa(number),
		}
		ns, err := createNamespace(world.namespace)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			t.Fatalf("make the internet: %v", err)
		}
		t.Cleanup(func() {
			if err := errors.Join(removeLink(world.link), removeNamespace(world.namespace)); err != nil {
				t.Errorf("remove the internet: %v", err)
			}
		})
		err = world.connect(number, ns)
		ns.Close()
		if err != nil {
			t.Fatalf("make the internet: %v", err)
		}
		return world
	}
	t.Fatal("no subnet is free for the internet")
	return internet{}
}

// connect links the host and the internet.
func (world internet) connect(number int, ns *namespace) error {
	as := Slot{Index: number, Link: world.link, Gateway: world.host, Guest: netip.PrefixFrom(world.server, slotBits)}
	if err := errors.Join(createLink(as, fallbackMTU, ns), configureGuest(as, ns)); err != nil {
		return err
	}
	link, err := netlink.LinkByName(world.link)
	if err != nil {
		return err
	}
	return netlink.LinkSetMTU(link, narrowMTU)
}

// hostAddr is an address of the host on its way out, or else anywhere.
func hostAddr(t testing.TB) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		prefix := netip.MustParsePrefix(addr.String())
		if prefix.Addr().Is4() && !prefix.Addr().IsLoopback() && !defaultPrefix.Contains(prefix.Addr()) {
			return prefix.Addr()
		}
	}
	t.Fatal("the host has no IPv4 address besides loopback; the isolation from it cannot be tested")
	return netip.Addr{}
}

// TestGuestReachesNothingButTheInternet connects from inside a slot to what exists, and
// must be refused by the rules: where there is a listener it answers anyone else.
func TestGuestReachesNothingButTheInternet(t *testing.T) {
	n := open(t, newConfig(t))
	slot, other := mustAcquire(t, n), mustAcquire(t, n)
	world := newInternet(t)
	everywhere := greet(t, listenIn(t, "", "0.0.0.0:0")).Port()
	neighbour := greet(t, listenIn(t, other.Namespace, "0.0.0.0:0"))
	metadata := listenOnExtraAddress(t, world, "169.254.169.254")
	private := listenOnExtraAddress(t, world, "10.200.3.4")
	lan := listenOnExtraAddress(t, world, "192.168.77.7")

	for name, target := range map[string]netip.AddrPort{
		"host":                    netip.AddrPortFrom(hostAddr(t), everywhere),
		"host on its world side":  netip.AddrPortFrom(world.host, everywhere),
		"own gateway":             netip.AddrPortFrom(slot.Gateway, everywhere),
		"other slot's gateway":    netip.AddrPortFrom(other.Gateway, everywhere),
		"other slot's DNS":        netip.AddrPortFrom(other.Gateway, dnsPort),
		"other slot's guest":      netip.AddrPortFrom(other.Guest.Addr(), neighbour.Port()),
		"cloud metadata":          metadata,
		"private range":           private,
		"local network":           lan,
		"private range, no route": netip.MustParseAddrPort("172.20.1.1:80"),
		"carrier-grade NAT":       netip.MustParseAddrPort("100.64.0.1:80"),
	} {
		conn, err := dialFrom(t, slot.Namespace, "tcp4", target)
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s (%v): the guest got a connection", name, target)
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s (%v): %v, want connection refused", name, target, err)
		}
	}
	for _, target := range []netip.AddrPort{metadata, private, lan, netip.AddrPortFrom(other.Guest.Addr(), neighbour.Port())} {
		if _, err := net.DialTimeout("tcp4", target.String(), dialTimeout); err != nil {
			t.Errorf("the host itself cannot reach %v, so that the test shows nothing: %v", target, err)
		}
	}
}

// listenOnExtraAddress gives the world another address and the host a route to it, and
// greets there.
func listenOnExtraAddress(t testing.TB, world internet, address string) netip.AddrPort {
	t.Helper()
	extra := netip.PrefixFrom(netip.MustParseAddr(address), 32)
	ns, err := openNamespace(world.namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lo, err := ns.routes.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.routes.AddrReplace(lo, &netlink.Addr{IPNet: ipNet(extra)}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(world.link)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(extra), Gw: net.IP(world.server.AsSlice())}
	if err := netlink.RouteReplace(route); err != nil {
		t.Fatal(err)
	}
	return greet(t, listenIn(t, world.namespace, netip.AddrPortFrom(extra.Addr(), 0).String()))
}

func TestGuestReachesTheInternetUnderTheHostsAddress(t *testing.T) {
	c := newConfig(t)
	// Another instance on this machine would masquerade guests of the default prefix too.
	c.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(120 + rand.IntN(100)), byte(rand.IntN(16) * 16), 0}), 20)
	n := open(t, c)
	slot := mustAcquire(t, n)
	world := newInternet(t)
	server := greet(t, listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String()))

	conn, err := dialFrom(t, slot.Namespace, "tcp4", server)
	if err != nil {
		t.Fatalf("the guest cannot reach the internet: %v", err)
	}
	defer conn.Close()
	seen, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if got := netip.MustParseAddrPort(string(seen)).Addr(); got != world.host {
		t.Errorf("the internet sees %v, want the host's %v", got, world.host)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var segment int
	if err := raw.Control(func(fd uintptr) {
		segment, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	}); err != nil {
		t.Fatal(err)
	}
	const headers = 40 // IPv4 and TCP without options, in bytes
	if segment > narrowMTU-headers {
		t.Errorf("segments of %d bytes do not fit the MTU of %d", segment, narrowMTU)
	}

	// The world cannot begin a connection to the guest, even if it has a route.
	guest := greet(t, listenIn(t, slot.Namespace, "0.0.0.0:0"))
	target := netip.AddrPortFrom(slot.Guest.Addr(), guest.Port()).String()
	_, err = inside(t, world.namespace, func() (net.Conn, error) { return net.DialTimeout("tcp4", target, dropTimeout) })
	if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("from the internet to a port of the guest: %v, want a timeout", err)
	}
}

// A guest that opens connections without end runs into its own limit, and leaves room in
// the host's table for others.
func TestFlowsOfAGuestAreLimited(t *testing.T) {
	n := open(t, newConfig(t))
	greedy, modest := mustAcquire(t, n), mustAcquire(t, n)
	world := newInternet(t)
	server := greet(t, listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String()))

	// One packet to each of many ports, and each is a connection to conntrack.
	socket, err := inside(t, greedy.Namespace, func() (*net.UDPConn, error) { return net.ListenUDP("udp4", nil) })
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	refused := 0
	const firstPort = 1024
	for port := range uint16(maxFlows + 512) {
		// A refusal comes back as an error of the next send.
		if _, err := socket.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(world.server, firstPort+port)); err != nil {
			refused++
		}
	}
	if _, err := dialFrom(t, greedy.Namespace, "tcp4", server); err == nil {
		t.Errorf("a guest with %d connections gets another (%d sends refused)", maxFlows+512, refused)
	}
	conn, err := dialFrom(t, modest.Namespace, "tcp4", server)
	if err != nil {
		t.Fatalf("another guest suffers: %v", err)
	}
	_ = conn.Close()
}

func TestHostReachesGuest(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	guest := greet(t, listenIn(t, slot.Namespace, "0.0.0.0:0"))
	conn, err := net.DialTimeout("tcp4", netip.AddrPortFrom(slot.Guest.Addr(), guest.Port()).String(), dialTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	seen, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if got := netip.MustParseAddrPort(string(seen)).Addr(); got != slot.Gateway {
		t.Errorf("the guest sees %v, want its gateway %v", got, slot.Gateway)
	}
}

// TestSpoofedSourceIsDropped sends packets to the internet with sources that are not the
// slot's, and then an honest one: only that one may arrive.
func TestSpoofedSourceIsDropped(t *testing.T) {
	n := open(t, newConfig(t))
	slot, other := mustAcquire(t, n), mustAcquire(t, n)
	world := newInternet(t)
	looseReversePath(t, slot.Link)
	receiver, err := inside(t, world.namespace, func() (net.PacketConn, error) {
		return net.ListenPacket("udp4", netip.AddrPortFrom(world.server, 0).String())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()

	honest := slot.Guest.Addr()
	for _, source := range []netip.Addr{netip.MustParseAddr("203.0.113.9"), other.Guest.Addr(), hostAddr(t), honest} {
		sendFrom(t, slot, source, receiver.LocalAddr().String())
	}
	if err := receiver.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64)
	size, _, err := receiver.ReadFrom(buffer)
	if err != nil {
		t.Fatalf("the honest packet did not arrive: %v", err)
	}
	if got := string(buffer[:size]); got != honest.String() {
		t.Errorf("a packet with the source %s got through", got)
	}
}

// looseReversePath turns the kernel's own check of sources off on a link, so that the
// rules alone are tested.
func looseReversePath(t testing.TB, link string) {
	t.Helper()
	for _, which := range []string{"all", link} {
		path := "/proc/sys/net/ipv4/conf/" + which + "/rp_filter"
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("0"), 0o600); err != nil {
			t.Fatal(err)
		}
		if which == "all" {
			t.Cleanup(func() { _ = os.WriteFile(path, bytes.TrimSpace(before), 0o600) })
		}
	}
}

// sendFrom sends a UDP packet from the slot that has source both as its source and as
// its content.
func sendFrom(t testing.TB, slot Slot, source netip.Addr, to string) {
	t.Helper()
	ns, err := openNamespace(slot.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lo, err := ns.routes.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if source != slot.Guest.Addr() {
		own := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(source, 32))}
		if err := ns.routes.AddrReplace(lo, own); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := inside(t, slot.Namespace, func() (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
		return dialer.Dial("udp4", to)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, source); err != nil {
		t.Fatal(err)
	}
}

func TestTwoInstancesLeaveEachOtherAlone(t *testing.T) {
	first, second := open(t, newConfig(t)), open(t, newConfig(t))
	one, two := mustAcquire(t, first), mustAcquire(t, second)
	if one.Index == two.Index {
		t.Fatalf("both got slot %d", one.Index)
	}
	listener := greet(t, listenIn(t, two.Namespace, "0.0.0.0:0"))
	target := netip.AddrPortFrom(two.Guest.Addr(), listener.Port())
	if _, err := dialFrom(t, one.Namespace, "tcp4", target); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("from one instance's guest to the other's: %v, want connection refused", err)
	}
	if err := errors.Join(second.Release(t.Context(), one), second.Sweep(t.Context(), []int{two.Index})); err != nil {
		t.Fatal(err)
	}
	if got := traces(t, first, one); len(got) != 3 {
		t.Errorf("the other instance removed parts of a slot, left is %v", got)
	}
	if err := errors.Join(first.Release(t.Context(), one), first.Close()); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp4", target.String(), dialTimeout)
	if err != nil {
		t.Fatalf("after the first instance ended, the second's guest is out of reach: %v", err)
	}
	_ = conn.Close()
	if got := elements(t, second.firewall); got != 3 {
		t.Errorf("set elements of the second instance: %d, want 3", got)
	}
}

// TestGuestsOfAnyPrefixAreApart shows that it is not the ban on private ranges alone that
// keeps guests from each other.
func TestGuestsOfAnyPrefixAreApart(t *testing.T) {
	c := newConfig(t)
	c.Prefix = netip.MustParsePrefix("203.0.113.0/24")
	n := open(t, c)
	one, two := mustAcquire(t, n), mustAcquire(t, n)
	listener := greet(t, listenIn(t, two.Namespace, "0.0.0.0:0"))
	target := netip.AddrPortFrom(two.Guest.Addr(), listener.Port())
	if _, err := dialFrom(t, one.Namespace, "tcp4", target); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("from one guest to another: %v, want connection refused", err)
	}
}

func TestDNSThroughTheGateway(t *testing.T) {
	c := newConfig(t)
	upstream := startUpstream(t)
	c.ResolvConf = resolvConf(t, upstream.String())
	n := open(t, c)
	slot := mustAcquire(t, n)
	for _, network := range []string{"udp4", "tcp4"} {
		resolver := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return dialFrom(t, slot.Namespace, network, netip.AddrPortFrom(slot.Gateway, dnsPort))
		}}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		got, err := resolver.LookupHost(ctx, "example.test.")
		cancel()
		if err != nil || len(got) != 1 || got[0] != upstreamAnswer {
			t.Errorf("over %s: %v, %v, want %s", network, got, err, upstreamAnswer)
		}
	}
	// The same question from the host is not the guest's.
	conn, err := net.Dial("udp4", netip.AddrPortFrom(slot.Gateway, dnsPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(dropTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(question(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 512)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the forwarder answered someone who is not its guest: %v", err)
	}
}
