// Package network gives every sandbox a network of its own and keeps it there.
//
// A slot is a number from which everything follows: a named network namespace, a veth
// pair into it, a /30 of addresses, a DNS forwarder on the host's end, and elements in
// the sets of one nftables table, whose rules let a guest reach the internet and nothing
// else: not the host's services, not other sandboxes, not private ranges, not cloud
// metadata. Slots are shared out among all Wrenn instances of a machine by lease files.
//
// What a slot is made of lives in the kernel and outlives this process, and so do its
// rules. The package must not know what a sandbox is or what runs in a namespace.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/network/dnsforward"
)

const (
	// DefaultLeaseDir is the register of slots that all instances of a machine share.
	DefaultLeaseDir = "/run/wrenn/slots"

	// slotBits is the prefix length of one slot: two usable addresses.
	slotBits = 30

	// slotAddresses is the number of addresses of one slot.
	slotAddresses = 1 << (32 - slotBits)

	// namespaceDir is where named network namespaces are mounted, by convention of iproute2.
	namespaceDir = "/run/netns"

	// linkPrefix begins the name of the host's end of every slot of every instance, and
	// the firewall knows other sandboxes by it. namespacePrefix does so for namespaces.
	linkPrefix      = "wrn"
	namespacePrefix = "wrenn-"

	// guestLink is the name of the other end, inside the namespace.
	guestLink = "eth0"

	dnsPort = 53
)

// defaultPrefix holds 16384 slots.
var defaultPrefix = netip.MustParsePrefix("10.113.0.0/16")

// Config says which part of the machine's network is ours.
type Config struct {
	// Instance is 8 lower-case hex digits, unique to this data directory; it is part of
	// the nftables table's name.
	Instance string

	// DataDir is the absolute path of the instance's data directory. It stands in the
	// leases, so that others can tell whether their owner still exists.
	DataDir string

	// LeaseDir is the register of slots, DefaultLeaseDir if empty. Instances that do not
	// share it take each other's slots for leftovers, so every one on a machine must.
	LeaseDir string

	// Prefix is divided among the slots: slot n is its n-th /30. Zero: 10.113.0.0/16.
	Prefix netip.Prefix

	// ResolvConf names the resolvers that guests' queries go to. Empty: /etc/resolv.conf.
	ResolvConf string

	Log *slog.Logger
}

var instancePattern = regexp.MustCompile(`^[0-9a-f]{8}$`)

// complete fills in the defaults and says what is wrong with the rest.
func (c *Config) complete() error {
	if c.LeaseDir == "" {
		c.LeaseDir = DefaultLeaseDir
	}
	if !c.Prefix.IsValid() {
		c.Prefix = defaultPrefix
	}
	c.Prefix = c.Prefix.Masked()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case !instancePattern.MatchString(c.Instance):
		return fault.New(fault.InvalidRequest, "network instance %q: want 8 lower-case hex digits", c.Instance)
	case !filepath.IsAbs(c.DataDir):
		return fault.New(fault.InvalidRequest, "data directory %q: want an absolute path", c.DataDir)
	case !filepath.IsAbs(c.LeaseDir):
		return fault.New(fault.InvalidRequest, "lease directory %q: want an absolute path", c.LeaseDir)
	case !c.Prefix.Addr().Is4() || c.Prefix.Bits() > slotBits || c.Prefix.Bits() < 8:
		return fault.New(fault.InvalidRequest, "sandbox network %v: want an IPv4 network from /8 to /%d", c.Prefix, slotBits)
	}
	return nil
}

// Slot is one sandbox's network. It is a plain value and may be stored. All but Lease
// follows from its index and the instance's prefix.
type Slot struct {
	Index     int
	Namespace string       // absolute path of the network namespace
	Link      string       // name of the host's end of the veth pair
	Gateway   netip.Addr   // address of the host's end, and the guest's DNS server
	Guest     netip.Prefix // the guest's address, with the length of its subnet

	// Lease tells this taking of the slot from earlier and later ones of the same index, so
	// that who holds on to a Slot for too long does nothing to the next one's.
	Lease string `json:",omitempty"`
}

// valid tells a slot from a zero one, which must not be taken for slot 0.
func (s Slot) valid() bool { return s.Index >= 0 && s.Link == linkName(s.Index) }

// Network hands out the slots of one instance. It is made by Open, is safe for concurrent
// use, and ends with Close, after which it hands out nothing any more.
type Network struct {
	*maker
	config Config

	// cursor makes Acquire go round through the indexes, so that an address just given
	// back rests as long as possible before another guest gets it.
	cursor atomic.Uint32

	// busy serialises work on one index.
	busy indexLocks

	// retiring counts the slots that are being given back with nobody waiting for it.
	retiring sync.WaitGroup

	counts linkCounts
}

// Open makes the host ready for slots: it turns on forwarding and puts the nftables table
// in place, in one step in place of an earlier one. It touches no slot, and slots that
// this instance still has leases for stay isolated throughout.
func Open(ctx context.Context, c Config) (*Network, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.HostUnavailable, "sandbox networks need root; start Wrenn as root")
	}
	n := &Network{config: c, maker: &maker{
		log:      c.Log,
		leases:   leases{dir: c.LeaseDir, owner: owner{Instance: c.Instance, DataDir: c.DataDir}},
		firewall: newFirewall(c.Instance, c.Prefix),
		dns:      dnsforward.New(c.ResolvConf, c.Log),
		holdings: newHoldings(),
		plan:     plan{prefix: c.Prefix},
	}}
	if err := enableForwarding(); err != nil {
		return nil, fault.Wrap(err, fault.HostUnavailable,
			"cannot turn on IPv4 forwarding; run `sysctl -w net.ipv4.ip_forward=1` and start again")
	}
	var err error
	if n.mtu, n.plan.taken, err = surveyHost(c.Prefix); err != nil {
		return nil, fault.Wrap(err, fault.HostUnavailable, "cannot read the host's network configuration")
	}
	if err := n.leases.register(); err != nil {
		return nil, fault.Wrap(err, fault.HostUnavailable, "cannot write the register of network slots in %s", c.LeaseDir)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := n.installFirewall(ctx); err != nil {
		return nil, errors.Join(err, n.firewall.close())
	}
	// Instances begin at different places, so that they do not compete for every index.
	number, err := strconv.ParseUint(c.Instance, 16, 32)
	if err != nil {
		return nil, fmt.Errorf("instance %q: %w", c.Instance, err)
	}
	n.removals.group, n.removals.forget = uint32(number), n.forget
	n.cursor.Store(uint32(number % uint64(n.plan.capacity())))
	return n, nil
}

// installFirewall puts the table in place with the slots that are leased to this
// instance: their guests may be running, and must not go a moment without rules.
func (n *Network) installFirewall(ctx context.Context) error {
	ours, err := n.leases.ours()
	if err != nil {
		return fault.Wrap(err, fault.HostUnavailable, "cannot read the register of network slots in %s", n.config.LeaseDir)
	}
	slots := make(map[Slot]standing)
	for index, held := range ours {
		if index >= n.plan.capacity() {
			continue
		}
		slots[n.plan.slot(index)] = admitted
		if !held.ParkedAt.IsZero() {
			slots[n.plan.slot(index)] = parked
		}
	}
	if err := n.firewall.install(slots); err != nil {
		return fault.Wrap(err, fault.HostUnavailable,
			"the kernel refused the firewall table for sandboxes; it needs nf_tables with inet, conntrack, NAT and reject support "+
				"(try `modprobe -a nf_tables nft_ct nft_masq nft_reject_inet`), and Wrenn needs CAP_NET_ADMIN")
	}
	for _, chain := range n.firewall.obstacles() {
		n.log.WarnContext(ctx, "another firewall drops by default and may cut sandboxes off; let it accept traffic from and to links named wrn*",
			"chain", chain)
	}
	return nil
}

// Close stops the DNS forwarders, when all that was to be given back is. Other slots stay,
// and while there are any of this instance, so does the table: guests that outlive this
// process stay isolated, and what is held stays held. Without slots the table goes too.
func (n *Network) Close() error {
	n.retiring.Wait()
	for _, server := range n.holdings.close() {
		server.Close()
	}

	ours, err := n.leases.ours()
	if err == nil && len(ours) == 0 {
		err = errors.Join(n.firewall.remove(), n.leases.unregister())
	}
	return errors.Join(err, n.firewall.close())
}

// owned reports whether slot is the one that this instance has now, and not one of the
// same index that was given back since, nor one that is parked.
func (n *Network) owned(slot Slot) (bool, error) {
	held, mine, err := n.leases.mine(slot.Index)
	return mine && held.of(slot) && held.ParkedAt.IsZero(), err
}
