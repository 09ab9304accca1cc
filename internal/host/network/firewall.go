package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the name of every instance's table; the instance follows.
const tablePrefix = "wrenn_"

// flowsSize is how many guests can be counted at once, more than there are slots.
const flowsSize = 1 << 16

// firewall is one instance's nftables table. Its rules are the same for all slots and
// look the slot up in sets, so that a slot costs a few set elements and no rule. It is
// safe for concurrent use: each call is a transaction of its own in the kernel.
type firewall struct {
	prefix   netip.Prefix
	table    *nftables.Table
	links    *nftables.Set // the host's ends, by name
	guests   *nftables.Set // link . the one source address that may come in by it
	gateways *nftables.Set // link . the one address of the host that it may ask for DNS
	closed   *nftables.Set // destinations that no guest may reach
	flows    *nftables.Set // guests that have connections; the kernel counts them
}

func newFirewall(instance string, prefix netip.Prefix) *firewall {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tablePrefix + instance}
	linkAndAddr := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
	return &firewall{
		prefix:   prefix,
		table:    table,
		links:    &nftables.Set{Table: table, Name: "links", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		guests:   &nftables.Set{Table: table, Name: "guests", KeyType: linkAndAddr, Concatenation: true},
		gateways: &nftables.Set{Table: table, Name: "gateways", KeyType: linkAndAddr, Concatenation: true},
		closed:   &nftables.Set{Table: table, Name: "closed", KeyType: nftables.TypeIPAddr, Interval: true},
		flows:    &nftables.Set{Table: table, Name: "flows", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: flowsSize},
	}
}

// install puts the table in place of an earlier one, with these slots in its sets, in one
// transaction: there is no moment with half of the rules, or with none.
func (f *firewall) install(slots []Slot) error {
	conn := &nftables.Conn{}
	// To add before deleting makes it work whether or not there is an earlier table.
	conn.AddTable(f.table)
	conn.DelTable(f.table)
	conn.AddTable(f.table)
	for _, set := range []*nftables.Set{f.links, f.guests, f.gateways, f.flows} {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("set %s: %w", set.Name, err)
		}
	}
	if err := conn.AddSet(f.closed, intervals(closedRanges)); err != nil {
		return fmt.Errorf("set %s: %w", f.closed.Name, err)
	}
	f.addRules(conn)
	for _, slot := range slots {
		if err := f.eachSet(slot, conn.SetAddElements); err != nil {
			return err
		}
	}
	return conn.Flush()
}

// remove deletes the table, if it is there.
func (f *firewall) remove() error {
	conn := &nftables.Conn{}
	conn.AddTable(f.table)
	conn.DelTable(f.table)
	return conn.Flush()
}

// admit puts a slot under the rules. To do so again changes nothing.
func (f *firewall) admit(slot Slot) error {
	conn := &nftables.Conn{}
	if err := f.eachSet(slot, conn.SetAddElements); err != nil {
		return err
	}
	return conn.Flush()
}

// expel takes a slot out again. The elements of a slot come and go together, so if one
// is missing then all are.
func (f *firewall) expel(slot Slot) error {
	conn := &nftables.Conn{}
	if err := f.eachSet(slot, conn.SetDeleteElements); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// eachSet calls change with each set and the slot's element of it.
func (f *firewall) eachSet(slot Slot, change func(*nftables.Set, []nftables.SetElement) error) error {
	link := linkKey(slot.Link)
	guest := append(linkKey(slot.Link), slot.Guest.Addr().AsSlice()...)
	gateway := append(linkKey(slot.Link), slot.Gateway.AsSlice()...)
	return errors.Join(
		change(f.links, []nftables.SetElement{{Key: link}}),
		change(f.guests, []nftables.SetElement{{Key: guest}}),
		change(f.gateways, []nftables.SetElement{{Key: gateway}}),
	)
}

// linkKey is a link's name as the kernel compares it, filled up with NUL bytes.
func linkKey(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

// obstacles names the chains of other firewalls that drop forwarded or incoming packets
// by default: an accept in our table does not overrule them. It is a help to the person
// who wonders, and so says nothing when it cannot find out.
func (f *firewall) obstacles() []string {
	conn := &nftables.Conn{}
	chains, err := conn.ListChains()
	if err != nil {
		return nil
	}
	var found []string
	for _, chain := range chains {
		if chain.Hooknum == nil || chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop {
			continue
		}
		hook := *chain.Hooknum == *nftables.ChainHookForward || *chain.Hooknum == *nftables.ChainHookInput
		family := chain.Table.Family == nftables.TableFamilyIPv4 || chain.Table.Family == nftables.TableFamilyINet
		if hook && family && !strings.HasPrefix(chain.Table.Name, tablePrefix) {
			found = append(found, chain.Table.Name+" "+chain.Name)
		}
	}
	return found
}

// intervals turns ascending, separate ranges into the elements of an interval set: each
// begins, and the address after it ends it, except where the address space does.
func intervals(ranges []netip.Prefix) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, r := range ranges {
		elements = append(elements, nftables.SetElement{Key: r.Addr().AsSlice()})
		last := be32(r.Addr().As4()) | (1<<(32-r.Bits()) - 1)
		if next := addr4(last + 1); next.Compare(r.Addr()) > 0 {
			elements = append(elements, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}
