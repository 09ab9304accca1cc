package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the name of every instance's table; the instance follows.
const tablePrefix = "wrenn_"

// layoutName has a number that is to be raised whenever a chain's or a set's name or kind
// changes, and whenever one comes or goes.
const layoutName = "layout_1"

// flowsSize is how many guests can be counted at once, more than there are slots.
const flowsSize = 1 << 16

// firewall is one instance's nftables table. Its rules are the same for all slots and
// look the slot up in sets, so that a slot costs a few set elements and no rule. It is
// safe for concurrent use: each call is a transaction of its own in the kernel. Call
// close at the end.
type firewall struct {
	prefix   netip.Prefix
	table    *nftables.Table
	layout   *nftables.Set // empty; its name tells the layout of the table
	links    *nftables.Set // the host's ends, by name
	guests   *nftables.Set // link . the one source address that may come in by it
	gateways *nftables.Set // link . the one address of the host that it may ask for DNS
	closed   *nftables.Set // destinations that no guest may reach
	flows    *nftables.Set // guests that have connections; the kernel counts them
	held     *nftables.Set // links that nothing passes
	parked   *nftables.Set // addresses of guests that are away and may come back

	mu   sync.Mutex
	conn *nftables.Conn // see commit; nil when there is none
}

func newFirewall(instance string, prefix netip.Prefix) *firewall {
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tablePrefix + instance}
	linkAndAddr := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
	return &firewall{
		prefix:   prefix,
		table:    table,
		layout:   &nftables.Set{Table: table, Name: layoutName, KeyType: nftables.TypeIPAddr},
		links:    &nftables.Set{Table: table, Name: "links", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		guests:   &nftables.Set{Table: table, Name: "guests", KeyType: linkAndAddr, Concatenation: true},
		gateways: &nftables.Set{Table: table, Name: "gateways", KeyType: linkAndAddr, Concatenation: true},
		closed:   &nftables.Set{Table: table, Name: "closed", KeyType: nftables.TypeIPAddr, Interval: true},
		flows:    &nftables.Set{Table: table, Name: "flows", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: flowsSize},
		held:     &nftables.Set{Table: table, Name: "held", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		parked:   &nftables.Set{Table: table, Name: "parked", KeyType: nftables.TypeIPAddr},
	}
}

// standing is what the firewall makes of a slot.
type standing int

const (
	absent   standing = iota // it knows nothing of the slot
	admitted                 // the slot is under the rules for guests
	held                     // it is, and nothing passes its link
	parked                   // there is no link, and what comes for the guest vanishes
)

// install puts the rules in force, with these slots in the sets, in one transaction. Slots
// that an earlier process has held stay held, and the flows that are counted stay counted.
//
// A table of the same layout keeps its chains and sets, and gets new rules and elements:
// the kernel switches each chain at one moment for any packet. Of two tables that replace
// one another a packet may come to the new one's chain a moment before its rules count and
// to the old one's, next in turn, a moment after they do, and be let through by both.
func (f *firewall) install(slots map[Slot]standing) error {
	earlier, err := f.heldLinks()
	if err != nil {
		return fmt.Errorf("read the earlier table: %w", err)
	}
	_, err = new(nftables.Conn).GetSetByName(f.table, f.layout.Name)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("look for the earlier table: %w", err)
	}
	another := err != nil
	for slot, state := range slots {
		if state == admitted && earlier[slot.Link] {
			slots[slot] = held
		}
	}
	return f.commit(func(conn *nftables.Conn) error {
		conn.AddTable(f.table)
		if another {
			conn.DelTable(f.table)
			conn.AddTable(f.table)
		}
		return f.fill(conn, slots)
	})
}

// fill gives the table its sets, its rules and these slots.
func (f *firewall) fill(conn *nftables.Conn, slots map[Slot]standing) error {
	for _, set := range []*nftables.Set{f.layout, f.flows, f.links, f.guests, f.gateways, f.held, f.parked, f.closed} {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("set %s: %w", set.Name, err)
		}
		if set != f.layout && set != f.flows {
			conn.FlushSet(set)
		}
	}
	if err := conn.SetAddElements(f.closed, intervals(closedRanges)); err != nil {
		return fmt.Errorf("set %s: %w", f.closed.Name, err)
	}
	f.addRules(conn)
	for slot, state := range slots {
		for _, part := range f.parts(slot) {
			if !part.in(state) {
				continue
			}
			if err := conn.SetAddElements(part.set, part.element); err != nil {
				return err
			}
		}
	}
	return nil
}

// commit carries out what change puts together, all of it or nothing. It keeps its socket
// for the next time: to close one waits until the kernel has freed what was deleted last,
// by whomever, which takes over ten milliseconds. After an error the socket may still have
// something to say, and is closed.
func (f *firewall) commit(change func(*nftables.Conn) error) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		if f.conn, err = nftables.New(nftables.AsLasting()); err != nil {
			f.conn = nil
			return err
		}
	}
	if err = change(f.conn); err == nil {
		err = f.conn.Flush()
	}
	if err != nil {
		err = errors.Join(err, f.drop())
	}
	return err
}

// close gives the socket back. The firewall can still be used.
func (f *firewall) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.drop()
}

// drop closes the socket, if there is one. The caller holds mu.
func (f *firewall) drop() error {
	if f.conn == nil {
		return nil
	}
	err := f.conn.CloseLasting()
	f.conn = nil
	return err
}

// remove deletes the table, if it is there.
func (f *firewall) remove() error {
	return f.commit(func(conn *nftables.Conn) error {
		conn.AddTable(f.table)
		conn.DelTable(f.table)
		return nil
	})
}

// admit puts a slot under the rules. One that is there already, held or not, stays as it is.
func (f *firewall) admit(slot Slot) error {
	return f.commit(func(conn *nftables.Conn) error {
		for _, part := range f.parts(slot) {
			if !part.in(admitted) {
				continue
			}
			if err := conn.SetAddElements(part.set, part.element); err != nil {
				return err
			}
		}
		return nil
	})
}

// put gives a slot a standing, whatever it was, in one transaction.
func (f *firewall) put(slot Slot, state standing) error {
	err := f.commit(func(conn *nftables.Conn) error {
		for _, part := range f.parts(slot) {
			// What is not there cannot be deleted, so it is added first.
			err := conn.SetAddElements(part.set, part.element)
			if err == nil && !part.in(state) {
				err = conn.SetDeleteElements(part.set, part.element)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if state == absent && errors.Is(err, unix.ENOENT) {
		return nil // the whole table is gone
	}
	return err
}

// part is a slot's element of one set, and the standings in which it is there.
type part struct {
	set       *nftables.Set
	element   []nftables.SetElement
	standings []standing
}

func (p part) in(state standing) bool { return slices.Contains(p.standings, state) }

func (f *firewall) parts(slot Slot) []part {
	element := func(key []byte) []nftables.SetElement { return []nftables.SetElement{{Key: key}} }
	guest := slot.Guest.Addr().AsSlice()
	present := []standing{admitted, held}
	return []part{
		{f.links, element(linkKey(slot.Link)), present},
		{f.guests, element(append(linkKey(slot.Link), guest...)), present},
		{f.gateways, element(append(linkKey(slot.Link), slot.Gateway.AsSlice()...)), present},
		{f.held, element(linkKey(slot.Link)), []standing{held}},
		{f.parked, element(guest), []standing{parked}},
	}
}

// heldLinks returns the names of the links that are held. Without a table there are none.
func (f *firewall) heldLinks() (map[string]bool, error) {
	names := make(map[string]bool)
	conn := &nftables.Conn{}
	// Its elements are not asked for first: that error cannot be told from others.
	if _, err := conn.GetSetByName(f.table, f.held.Name); errors.Is(err, unix.ENOENT) {
		return names, nil
	} else if err != nil {
		return nil, err
	}
	elements, err := conn.GetSetElements(f.held)
	if err != nil {
		return nil, err
	}
	for _, element := range elements {
		names[unix.ByteSliceToString(element.Key)] = true
	}
	return names, nil
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
