package network

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	bitsPerByte = 8

	// minRate is the lowest rate that can be asked for, in bits per second: below it not
	// even the sandbox's own guest daemon answers in time.
	minRate = 64_000

	// minBurst is what passes at once, in bytes, after silence. It takes the largest packet
	// that the kernel has not yet cut to segments, so that it need not cut them here.
	minBurst = 68 << 10

	// burstTime is the least that a burst is worth at the full rate: at high rates the kernel
	// looks too rarely to let out small bursts in time.
	burstTime = 5 * time.Millisecond

	// queueTime is how long a packet may wait for its turn. More would only delay the others.
	queueTime = 50 * time.Millisecond
)

// SetRate limits what goes up from the guest and down to it, each in bits per second; 0
// takes the limit off. It may be changed at any time and outlives this process. It goes
// with the link, that is with Release and Park: Acquire and Unpark give slots without.
func (n *Network) SetRate(ctx context.Context, slot Slot, up, down int64) error {
	for _, rate := range []int64{up, down} {
		if rate < 0 || rate > 0 && rate < minRate {
			return fault.New(fault.InvalidRequest, "network rate of %d bit/s: want at least %d, or 0 for no limit", rate, minRate)
		}
	}
	defer n.busy.lock(slot.Index)()
	if err := n.mustOwn(ctx, slot); err != nil {
		return err
	}
	host, err := netlink.NewHandle()
	if err == nil {
		defer host.Close()
		err = limit(host, slot.Link, down)
	}
	if err == nil {
		err = inNamespace(ctx, slot, func(ns *namespace) error { return limit(ns.routes, guestLink, up) })
	}
	if err != nil {
		return failed(ctx, err, "cannot limit the rate of network slot %d", slot.Index)
	}
	return nil
}

// limit bounds what is sent over a link with a token bucket (tc-tbf(8)).
func limit(routes *netlink.Handle, name string, bitsPerSecond int64) error {
	link, err := routes.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	attrs := netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	}
	if bitsPerSecond > 0 {
		bytesPerSecond := uint64(bitsPerSecond / bitsPerByte)
		burst := max(minBurst, portion(bytesPerSecond, burstTime))
		bucket := &netlink.Tbf{
			QdiscAttrs: attrs,
			Rate:       bytesPerSecond,
			Limit:      burst + max(minBurst, portion(bytesPerSecond, queueTime)),
			Buffer:     netlink.Xmittime(bytesPerSecond, burst),
		}
		if err := routes.QdiscReplace(bucket); err != nil {
			return fmt.Errorf("limit %s: %w", name, err)
		}
		return nil
	}
	qdiscs, err := routes.QdiscList(link)
	if err != nil {
		return fmt.Errorf("list the queues of %s: %w", name, err)
	}
	for _, qdisc := range qdiscs {
		if _, ok := qdisc.(*netlink.Tbf); !ok {
			continue
		}
		if err := routes.QdiscDel(qdisc); err != nil {
			return fmt.Errorf("take the limit off %s: %w", name, err)
		}
	}
	return nil
}

// portion is how many bytes a rate moves in a time.
func portion(bytesPerSecond uint64, t time.Duration) uint32 {
	return uint32(min(float64(bytesPerSecond)*t.Seconds(), math.MaxUint32/4))
}
