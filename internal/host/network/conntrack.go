package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

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

// fewConnections is up to how many entries the table is listed rather than searched by the
// kernel: to list so many takes less than to have it search twice for each guest.
const fewConnections = 8192

const connectionCountFile = "/proc/sys/net/netfilter/nf_conntrack_count"

// forgetConnections drops what the kernel remembers of the guests' connections, so that
// packets that are still on their way to them do not reach the addresses' next owners.
func forgetConnections(guests ...netip.Addr) error {
	if len(guests) == 0 {
		return nil
	}
	// An unreadable count is none that is known to be small.
	text, _ := os.ReadFile(connectionCountFile)
	if count, err := strconv.Atoi(string(bytes.TrimSpace(text))); err == nil && count <= fewConnections {
		return forgetOneByOne(guests...)
	}
	for _, guest := range guests {
		err := errors.Join(
			forgetMatching(guest, nl.CTA_IP_V4_SRC, filterSource),
			forgetMatching(guest, nl.CTA_IP_V4_DST, filterDestination),
		)
		if err != nil {
			// A kernel before 6.8 does not take the filter.
			return forgetOneByOne(guests...)
		}
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

// ofGuests matches the connections of some guests.
type ofGuests map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (g ofGuests) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	source, _ := netip.AddrFromSlice(flow.Forward.SrcIP.To4())
	destination, _ := netip.AddrFromSlice(flow.Forward.DstIP.To4())
	return g[source] || g[destination]
}

// forgetOneByOne does the same by listing all connections of the host.
func forgetOneByOne(guests ...netip.Addr) error {
	wanted := make(ofGuests)
	for _, guest := range guests {
		wanted[guest] = true
	}
	var err error
	for range dumpAttempts {
		_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, wanted)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}
