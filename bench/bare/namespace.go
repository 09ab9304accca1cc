package bare

import (
	"net"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// newNamespace makes a network namespace with a link and an address, as runsc expects.
func newNamespace() (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		return netns.None(), err
	}
	defer here.Close()
	ns, err := netns.New()
	if err != nil {
		return netns.None(), err
	}
	err = addLink()
	if back := netns.Set(here); back != nil {
		panic(back) // this thread would go on in the wrong network
	}
	return ns, err
}

// addLink makes a link to nowhere inside the current namespace: what it costs a start is
// the same.
func addLink() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far"}); err != nil {
		return err
	}
	for _, name := range []string{"lo", "eth0", "far"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return addAddress()
}

// addAddress gives eth0 of the current namespace its address and route, unless it has them.
func addAddress() error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	const subnet = 30
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 77, 0, 2), Mask: net.CIDRMask(subnet, 32)}}); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(10, 77, 0, 1)})
}

// within runs f in a network namespace.
func within(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		return err
	}
	defer here.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	err = f()
	if back := netns.Set(here); back != nil {
		panic(back) // this thread would go on in the wrong network
	}
	return err
}
