package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What nl lacks of the kernel's nfnetlink_conntrack.h: the attribute that makes a request
// mean every connection that is alike, and the parts of the tuple that have to be.
const (
	attrFilter          = 25
	attrFilterOrigFlags = 1
	filterSource        = 1 << 0
	filterDestination   = 1 << 1
)

// forgetConnections drops what the kernel remembers of the guest's connections, so that
// packets that are still on their way to it do not reach the address's next owner.
func forgetConnections(guest netip.Addr) error {
	err := errors.Join(
		forgetMatching(guest, nl.CTA_IP_V4_SRC, filterSource),
		forgetMatching(guest, nl.CTA_IP_V4_DST, filterDestination),
	)
	if err != nil {
		// A kernel before 6.8 does not take the filter.
		return forgetOneByOne(guest)
	}
	return nil
}

// forgetMatching has the kernel drop the connections whose first packet had guest's
// address as attr says. To list them here instead takes a second when a guest has opened
// many thousands, and one release would wait for what another guest did.
func forgetMatching(guest netip.Addr, attr int, flag uint32) error {
	request := nl.NewNetlinkRequest(int(netlink.ConntrackTable)<<8|nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	// Without the tuple the request would be for the whole table; a kernel that
	// overlooks the filter finds the tuple incomplete and refuses.
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil).AddRtAttr(attr, guest.AsSlice())
	request.AddData(tuple)
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|attrFilter, nil)
	filter.AddRtAttr(attrFilterOrigFlags, nl.Uint32Attr(flag))
	request.AddData(filter)
	if _, err := request.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return fmt.Errorf("delete conntrack entries of %v: %w", guest, err)
	}
	return nil
}

// forgetOneByOne does the same by listing all connections of the host.
func forgetOneByOne(guest netip.Addr) error {
	addr := net.IP(guest.AsSlice())
	var from, to netlink.ConntrackFilter
	err := errors.Join(
		from.AddIP(netlink.ConntrackOrigSrcIP, addr),
		to.AddIP(netlink.ConntrackOrigDstIP, addr),
	)
	if err != nil {
		return err
	}
	_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, &from, &to)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil
	}
	return err
}
