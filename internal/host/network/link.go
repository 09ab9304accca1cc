package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The second-to-last octets of the two ends' hardware addresses are told apart by this.
const (
	gatewayMAC = 0x01
	guestMAC   = 0x02
)

// hardwareAddr is fixed per slot and end. A guest that is restored into its old slot has
// the gateway's address in its neighbour table, and would be cut off until that entry
// times out if the new link had another one. An address that is set explicitly also
// keeps udev from replacing it while the slot comes up.
func hardwareAddr(end byte, index int) net.HardwareAddr {
	// 0x02: locally administered, unicast.
	return net.HardwareAddr{0x02, 'w', end, byte(index >> 16), byte(index >> 8), byte(index)}
}

// createLink makes the veth pair with its far end inside ns and brings the host's end up.
func createLink(slot Slot, mtu int, ns *namespace) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = slot.Link
	attrs.MTU = mtu
	attrs.HardwareAddr = hardwareAddr(gatewayMAC, slot.Index)
	veth := netlink.NewVeth(attrs)
	veth.PeerName = guestLink
	veth.PeerMTU = uint32(mtu)
	veth.PeerHardwareAddr = hardwareAddr(guestMAC, slot.Index)
	veth.PeerNamespace = netlink.NsFd(ns.handle)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add %s: %w", slot.Link, err)
	}
	if err := disableIPv6(slot.Link); err != nil {
		return errors.Join(fmt.Errorf("disable IPv6 on %s: %w", slot.Link, err), removeLink(slot.Link))
	}
	gateway := netip.PrefixFrom(slot.Gateway, slot.Guest.Bits())
	if err := netlink.AddrReplace(veth, &netlink.Addr{IPNet: ipNet(gateway)}); err != nil {
		return errors.Join(fmt.Errorf("set the address of %s: %w", slot.Link, err), removeLink(slot.Link))
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return errors.Join(fmt.Errorf("set %s up: %w", slot.Link, err), removeLink(slot.Link))
	}
	return nil
}

// deletions lets links be deleted one at a time. The kernel takes tens of milliseconds for
// each, under a lock that every other change of links needs: with eight deletions under
// way a new slot took 35 ms instead of 2 ms. It is the process's, as the kernel's lock is
// the machine's.
var deletions sync.Mutex

// removeLink removes a link, if it is there, and with it its peer.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	deletions.Lock()
	defer deletions.Unlock()
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func isNoLink(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// configureGuest sets up the namespace's end: links up, address, default route. What is
// as it should be already stays.
func configureGuest(slot Slot, ns *namespace) error {
	loopback, err := ns.routes.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look up lo: %w", err)
	}
	if err := ns.routes.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	link, err := ns.routes.LinkByName(guestLink)
	if err != nil {
		return fmt.Errorf("look up %s: %w", guestLink, err)
	}
	if err := ns.routes.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", guestLink, err)
	}
	if err := ns.routes.AddrReplace(link, &netlink.Addr{IPNet: ipNet(slot.Guest)}); err != nil {
		return fmt.Errorf("set the address of %s: %w", guestLink, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)},
		Gw:        net.IP(slot.Gateway.AsSlice()),
	}
	if err := ns.routes.RouteReplace(route); err != nil {
		return fmt.Errorf("set the default route: %w", err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
