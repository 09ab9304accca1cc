package network

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// closedRanges are the destinations that are not the internet, in ascending order. The
// documentation ranges are not among them: they lead nowhere on the internet, and some
// machines are numbered from them.
var closedRanges = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),      // this network
	netip.MustParsePrefix("10.0.0.0/8"),     // private
	netip.MustParsePrefix("100.64.0.0/10"),  // carrier-grade NAT
	netip.MustParsePrefix("127.0.0.0/8"),    // loopback
	netip.MustParsePrefix("169.254.0.0/16"), // link-local, cloud metadata
	netip.MustParsePrefix("172.16.0.0/12"),  // private
	netip.MustParsePrefix("192.0.0.0/24"),   // IETF protocol assignments
	netip.MustParsePrefix("192.168.0.0/16"), // private
	netip.MustParsePrefix("198.18.0.0/15"),  // benchmarks
	netip.MustParsePrefix("224.0.0.0/3"),    // multicast and reserved
}

// reg is where every match below loads what it compares; a concatenation goes on in the
// register after it.
const (
	reg     = unix.NFT_REG_1
	regNext = unix.NFT_REG_2
)

// The reject types and codes of the kernel's nf_tables.h that golang.org/x/sys lacks.
const rejectAdminProhibited = 3

// match is a part of a rule.
type match = []expr.Any

// addRules fills the table:
//
//	guard    before conntrack: from our links comes IPv4 with the slot's own source, or nothing
//	hold     before conntrack where it can be: nothing to a guest that is held or away
//	input    guest to host: answers, DNS at the link's own gateway, nothing else
//	forward  guest to the world: what is not closed, up to maxFlows; the world to a guest: answers
//	clamp    TCP segments fit the path even where "too big" messages get lost
//	nat      guests appear under the host's address
func (f *firewall) addRules(conn *nftables.Conn) {
	accept := policy(nftables.ChainPolicyAccept)
	base := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return f.chain(conn, nftables.Chain{
			Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: priority, Policy: accept,
		})
	}
	rule := func(chain *nftables.Chain, parts ...match) {
		conn.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	refuse := f.chain(conn, nftables.Chain{Name: "refuse"})
	rule(refuse, protocol(unix.IPPROTO_TCP), rejectWithReset())
	rule(refuse, rejectAsProhibited())

	guard := base("guard", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	rule(guard, f.notFromGuest(), verdict(expr.VerdictAccept))
	rule(guard, f.toHeld(expr.MetaKeyIIFNAME), verdict(expr.VerdictDrop))
	rule(guard, notIPv4(), verdict(expr.VerdictDrop))
	rule(guard, inLinkAnd(sourceOffset, f.guests, true), verdict(expr.VerdictDrop))
	rule(guard, redirectMessage(), verdict(expr.VerdictDrop))

	// What a held guest sends must not reach conntrack: the end of a sandbox that was written
	// down closes its connections, and conntrack would forget them. Of what is sent to it no
	// packet may look for its link's other end, lest the host's sockets hear that it is
	// unreachable: that is why the host's own packets are dropped on their way out.
	for name, hook := range map[string]*nftables.ChainHook{
		"hold_output": nftables.ChainHookOutput, "hold_forward": nftables.ChainHookForward,
	} {
		hold := base(name, hook, nftables.ChainPriorityRaw)
		rule(hold, f.toHeld(expr.MetaKeyOIFNAME), verdict(expr.VerdictDrop))
		rule(hold, f.toParked(), verdict(expr.VerdictDrop))
	}

	input := base("input", nftables.ChainHookInput, nftables.ChainPriorityFilter)
	rule(input, f.notFromGuest(), verdict(expr.VerdictAccept))
	rule(input, knownConnection(), verdict(expr.VerdictAccept))
	rule(input, f.tooManyFlows(), jump(refuse))
	for _, number := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		rule(input, protocol(number), destinationPort(dnsPort),
			inLinkAnd(destinationOffset, f.gateways, false), verdict(expr.VerdictAccept))
	}
	rule(input, jump(refuse))

	fromGuest := f.chain(conn, nftables.Chain{Name: "from_guest"})
	rule(fromGuest, knownConnection(), verdict(expr.VerdictAccept))
	rule(fromGuest, f.toClosedRange(), jump(refuse))
	rule(fromGuest, linkIsSlot(expr.MetaKeyOIFNAME, expr.CmpOpEq), jump(refuse))
	rule(fromGuest, f.tooManyFlows(), jump(refuse))
	toGuest := f.chain(conn, nftables.Chain{Name: "to_guest"})
	rule(toGuest, knownConnection(), verdict(expr.VerdictAccept))
	// Another instance's guest: whichever table comes first, it hears no.
	rule(toGuest, linkIsSlot(expr.MetaKeyIIFNAME, expr.CmpOpEq), jump(refuse))
	rule(toGuest, verdict(expr.VerdictDrop))
	forward := base("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter)
	rule(forward, f.link(expr.MetaKeyIIFNAME, false), jump(fromGuest))
	rule(forward, f.link(expr.MetaKeyOIFNAME, false), jump(toGuest))

	clamp := base("clamp", nftables.ChainHookForward, nftables.ChainPriorityMangle)
	for _, side := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		rule(clamp, f.link(side, false), protocol(unix.IPPROTO_TCP), opensConnection(), clampSegments())
	}

	nat := f.chain(conn, nftables.Chain{
		Name: "nat", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Policy: accept,
	})
	rule(nat, sourceWithin(f.prefix), linkIsSlot(expr.MetaKeyOIFNAME, expr.CmpOpNeq), match{&expr.Masq{}})
}

// chain makes a chain of the table, or takes the rules out of the one that is there.
func (f *firewall) chain(conn *nftables.Conn, c nftables.Chain) *nftables.Chain {
	c.Table = f.table
	conn.AddChain(&c)
	conn.FlushChain(&c)
	return &c
}

// maxFlows is how many connections a guest may have at once. Each is an entry of the
// host's conntrack table, which all guests and the host share and which a guest without
// a limit fills in seconds; its usual size is 262,144.
const maxFlows = 16384

// tooManyFlows counts a packet's connection for its source, and matches when the source
// has more than maxFlows. Connections that are then refused are not counted.
func (f *firewall) tooManyFlows() match {
	return match{
		address(sourceOffset, reg),
		&expr.Dynset{
			SrcRegKey: reg, SetName: f.flows.Name, SetID: f.flows.ID, Operation: uint32(unix.NFT_DYNSET_OP_ADD),
			Exprs: []expr.Any{&expr.Connlimit{Count: maxFlows, Flags: connlimitOver}},
		},
	}
}

// connlimitOver makes the kernel's connlimit match above the count instead of up to it.
const connlimitOver = 1

func policy(p nftables.ChainPolicy) *nftables.ChainPolicy { return &p }

func verdict(kind expr.VerdictKind) match { return match{&expr.Verdict{Kind: kind}} }

func jump(to *nftables.Chain) match {
	return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: to.Name}}
}

// equal compares what the register holds; the value's length is the comparison's.
func equal(value ...byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: value} }

// link matches packets whose incoming or outgoing link is, or is not, one of ours.
func (f *firewall) link(key expr.MetaKey, invert bool) match {
	return match{
		&expr.Meta{Key: key, Register: reg},
		&expr.Lookup{SourceRegister: reg, SetName: f.links.Name, SetID: f.links.ID, Invert: invert},
	}
}

// toHeld matches packets whose incoming or outgoing link is held.
func (f *firewall) toHeld(key expr.MetaKey) match {
	return match{
		&expr.Meta{Key: key, Register: reg},
		&expr.Lookup{SourceRegister: reg, SetName: f.held.Name, SetID: f.held.ID},
	}
}

func (f *firewall) notFromGuest() match { return f.link(expr.MetaKeyIIFNAME, true) }

// linkIsSlot compares the beginning of the incoming or outgoing link's name with that of
// any slot, of whichever instance.
func linkIsSlot(key expr.MetaKey, op expr.CmpOp) match {
	return match{
		&expr.Meta{Key: key, Register: reg},
		&expr.Cmp{Op: op, Register: reg, Data: []byte(linkPrefix)},
	}
}

// Where the addresses stand in an IPv4 header, in bytes, and how long they are.
const (
	sourceOffset      = 12
	destinationOffset = 16
	addressLength     = 4
)

func address(offset, register uint32) *expr.Payload {
	return &expr.Payload{
		Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: addressLength, DestRegister: register,
	}
}

// family matches by the packet's protocol family.
func family(op expr.CmpOp) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: op, Register: reg, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

func notIPv4() match { return family(expr.CmpOpNeq) }

// inLinkAnd matches IPv4 packets whose incoming link together with the address at offset
// is, or is not, in set.
func inLinkAnd(offset uint32, set *nftables.Set, invert bool) match {
	return append(family(expr.CmpOpEq),
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		address(offset, regNext),
		&expr.Lookup{SourceRegister: reg, SetName: set.Name, SetID: set.ID, Invert: invert},
	)
}

func (f *firewall) toClosedRange() match {
	return append(family(expr.CmpOpEq),
		address(destinationOffset, reg),
		&expr.Lookup{SourceRegister: reg, SetName: f.closed.Name, SetID: f.closed.ID},
	)
}

// toParked matches packets to guests that are away. Without their links they would leave by
// the host's default route.
func (f *firewall) toParked() match {
	return append(family(expr.CmpOpEq),
		address(destinationOffset, reg),
		&expr.Lookup{SourceRegister: reg, SetName: f.parked.Name, SetID: f.parked.ID},
	)
}

func sourceWithin(prefix netip.Prefix) match {
	mask := ^uint32(0) << (32 - prefix.Bits())
	return append(family(expr.CmpOpEq),
		address(sourceOffset, reg),
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: addressLength,
			Mask: addr4(mask).AsSlice(), Xor: make([]byte, addressLength),
		},
		equal(prefix.Addr().AsSlice()...),
	)
}

// knownConnection matches what belongs to a connection that was let through before.
func knownConnection() match {
	const stateLength = 4
	return match{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: stateLength,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
			Xor:  make([]byte, stateLength),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, stateLength)},
	}
}

func protocol(number byte) match {
	return match{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal(number)}
}

// destinationPort matches TCP and UDP, which have the port in the same place.
func destinationPort(port uint16) match {
	return match{
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: reg},
		equal(binaryutil.BigEndian.PutUint16(port)...),
	}
}

// redirectMessage matches ICMP redirects, by which a guest could bend the host's routes.
func redirectMessage() match {
	const icmpRedirect = 5
	return append(protocol(unix.IPPROTO_ICMP),
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1, DestRegister: reg},
		equal(icmpRedirect),
	)
}

// opensConnection matches TCP packets with SYN, which are those that carry a segment size.
func opensConnection() match {
	const flagsOffset, syn = 13, 0x02
	return match{
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1, DestRegister: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{syn}, Xor: []byte{0}},
		equal(syn),
	}
}

// clampSegments lowers the segment size to what the route takes; the kernel never raises it.
func clampSegments() match {
	const maxSegmentOption, valueOffset, valueLength = 2, 2, 2
	return match{
		&expr.Rt{Key: expr.RtTCPMSS, Register: reg},
		&expr.Byteorder{
			SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: valueLength, Size: valueLength,
		},
		&expr.Exthdr{
			Op: expr.ExthdrOpTcpopt, Type: maxSegmentOption, Offset: valueOffset, Len: valueLength, SourceRegister: reg,
		},
	}
}

func rejectWithReset() match { return match{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func rejectAsProhibited() match {
	return match{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: rejectAdminProhibited}}
}
