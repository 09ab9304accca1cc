package network

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	forwardingFile = "/proc/sys/net/ipv4/ip_forward"

	// fallbackMTU is for a host without a default route, in bytes.
	fallbackMTU = 1500
)

// enableForwarding lets the host route. It writes only if need be, because a write of
// what is there already resets other settings of the host.
func enableForwarding() error {
	current, err := os.ReadFile(forwardingFile)
	if err != nil {
		return err
	}
	if string(bytes.TrimSpace(current)) == "1" {
		return nil
	}
	return os.WriteFile(forwardingFile, []byte("1"), 0o644)
}

// disableIPv6 turns IPv6 off on a link of the calling thread's network namespace, or for
// "all" and "default". A kernel without IPv6 needs nothing done.
func disableIPv6(link string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, "disable_ipv6"), []byte("1"), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// surveyHost finds the MTU of the host's way out, which the guests' links must not exceed
// lest large packets vanish where ICMP is filtered, and the parts of prefix that the host
// has addresses in or routes to. Those of other instances' slots do not count: they are
// leased.
func surveyHost(prefix netip.Prefix) (mtu int, taken []netip.Prefix, err error) {
	links, err := untilWhole(netlink.LinkList)
	if err != nil {
		return 0, nil, err
	}
	attrs := make(map[int]*netlink.LinkAttrs, len(links))
	for _, link := range links {
		attrs[link.Attrs().Index] = link.Attrs()
	}
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := untilWhole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return 0, nil, err
	}
	mtu = fallbackMTU
	metric := -1
	for _, route := range routes {
		link := attrs[routeLink(route)]
		if link == nil {
			continue
		}
		destination := routePrefix(route.Dst)
		switch {
		case destination.Bits() == 0:
			if route.Table == unix.RT_TABLE_MAIN && (metric < 0 || route.Priority < metric) {
				metric, mtu = route.Priority, link.MTU
			}
		case destination.Bits() >= prefix.Bits() && prefix.Contains(destination.Addr()) &&
			!strings.HasPrefix(link.Name, linkPrefix):
			taken = append(taken, destination)
		}
	}
	return mtu, taken, nil
}

// dumpAttempts is how often a listing is begun again that the kernel changed under way.
const dumpAttempts = 10

// untilWhole repeats a listing that the kernel changed under way, a few times: on a busy
// host it may never come out whole, and then the last one has to do.
func untilWhole[T any](list func() ([]T, error)) ([]T, error) {
	var items []T
	var err error
	for range dumpAttempts {
		if items, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return items, nil
}

// routeLink is the link that a route leads out by; of several next hops, the first.
func routeLink(route netlink.Route) int {
	if len(route.MultiPath) > 0 {
		return route.MultiPath[0].LinkIndex
	}
	return route.LinkIndex
}

// routePrefix converts a destination, of which nil means everywhere.
func routePrefix(destination *net.IPNet) netip.Prefix {
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if destination == nil {
		return everywhere
	}
	addr, ok := netip.AddrFromSlice(destination.IP.To4())
	if !ok {
		return everywhere
	}
	ones, _ := destination.Mask.Size()
	return netip.PrefixFrom(addr, ones)
}
