package ports

import (
	"net"
	"net/netip"
)

// maxForwards bounds how many addresses are listened on at once.
const maxForwards = 256

// addresses returns the addresses of an interface that others can reach.
func addresses(name string) ([]netip.Addr, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	all, err := link.Addrs()
	if err != nil {
		return nil, err
	}
	var list []netip.Addr
	for _, a := range all {
		ipNet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if addr, ok := netip.AddrFromSlice(ipNet.IP); ok && addr.Unmap().IsGlobalUnicast() {
			list = append(list, addr.Unmap())
		}
	}
	return list, nil
}

// wantedForwards returns what is to be forwarded, as outside address and loopback target:
// every port that a server listens on at loopback, on every outside address where nobody
// listens on it already. Both lists are sorted or short, so ports are taken in order and
// which ones fall to the bound does not change from look to look.
func wantedForwards(listeners []listener, outside []netip.Addr) map[netip.AddrPort]netip.AddrPort {
	taken := make(map[netip.AddrPort]struct{}, len(listeners))
	for _, l := range listeners {
		taken[l.addr] = struct{}{}
	}
	wanted := make(map[netip.AddrPort]netip.AddrPort)
	for _, l := range listeners {
		if !l.addr.Addr().IsLoopback() {
			continue
		}
		for _, addr := range outside {
			at := netip.AddrPortFrom(addr, l.addr.Port())
			if isTaken(taken, at) {
				continue
			}
			if now, found := wanted[at]; found && !closer(addr, l.addr.Addr(), now.Addr()) {
				continue
			} else if !found && len(wanted) >= maxForwards {
				continue
			}
			wanted[at] = l.addr
		}
	}
	return wanted
}

// isTaken says whether a server is to be reached at an address without our help. One that
// listens on all IPv6 addresses mostly has the IPv4 ones too, but need not: there the
// kernel tells when we try.
func isTaken(taken map[netip.AddrPort]struct{}, at netip.AddrPort) bool {
	if _, ok := taken[at]; ok {
		return true
	}
	every := netip.IPv6Unspecified()
	if at.Addr().Is4() {
		every = netip.IPv4Unspecified()
	}
	_, ok := taken[netip.AddrPortFrom(every, at.Port())]
	return ok
}

// closer says whether candidate is a better target than the one chosen before for what
// comes in at outside: one of the same family is, and then the lowest address.
func closer(outside, candidate, chosen netip.Addr) bool {
	same, was := candidate.Is4() == outside.Is4(), chosen.Is4() == outside.Is4()
	if same != was {
		return same
	}
	return candidate.Less(chosen)
}
