package network

import (
	"net/netip"
	"path/filepath"
	"strconv"
)

// plan divides an instance's prefix among its slots. It does not change.
type plan struct {
	prefix netip.Prefix
	taken  []netip.Prefix // parts of the prefix that the host itself uses
}

// capacity is the number of slots in the prefix.
func (p plan) capacity() int { return 1 << (slotBits - p.prefix.Bits()) }

// slot derives everything from the index.
func (p plan) slot(index int) Slot {
	first := be32(p.prefix.Addr().As4()) + uint32(index)*slotAddresses
	return Slot{
		Index:     index,
		Namespace: namespacePath(index),
		Link:      linkName(index),
		Gateway:   addr4(first + 1),
		Guest:     netip.PrefixFrom(addr4(first+2), slotBits),
	}
}

// made reports whether slot is, but for its lease, as this plan makes it.
func (p plan) made(slot Slot) bool {
	slot.Lease = ""
	return slot.Index < p.capacity() && slot == p.slot(slot.Index)
}

// usable reports whether the slot's subnet is free of the host's own addresses and routes.
func (p plan) usable(slot Slot) bool {
	for _, taken := range p.taken {
		if taken.Overlaps(slot.Guest.Masked()) {
			return false
		}
	}
	return true
}

func namespacePath(index int) string {
	return filepath.Join(namespaceDir, namespacePrefix+strconv.Itoa(index))
}

func linkName(index int) string { return linkPrefix + strconv.Itoa(index) }

func be32(b [4]byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func addr4(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
