package network

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// noIndex is in the place of an index where there is none.
const noIndex = -1

// Park takes the slot down like Release, for a guest that is away and may come back: its
// index stays taken, and the kernel keeps its connections in mind, with the host's ports
// that they appear under. What still comes for the guest vanishes unanswered, so that its
// peers send it again. When every other index is in use Acquire takes those parked for
// longest, and then forgets their connections. Release ends a parked slot.
func (n *Network) Park(ctx context.Context, slot Slot) error {
	defer n.busy.lock(slot.Index)()
	found, mine, err := n.leases.mine(slot.Index)
	if err == nil && mine && found.of(slot) && !found.ParkedAt.IsZero() {
		return nil
	}
	if err := n.mustOwn(ctx, slot); err != nil {
		return err
	}
	// Held first, so that a guest whose link goes cannot be heard ending its connections; and
	// the lease next to last, so that a crash before it leaves a slot for Sweep to remove.
	err = n.firewall.put(slot, held)
	if err == nil {
		err = n.takeDown(slot.Index, parked)
	}
	if err == nil {
		err = n.leases.rewrite(slot.Index, lease{ID: found.ID, ParkedAt: time.Now()})
	}
	if err != nil {
		return failed(context.WithoutCancel(ctx), err, "cannot park network slot %d", slot.Index)
	}
	return nil
}

// Unpark brings a parked slot back with its connections, and held: until the guest is in it
// again the namespace would reset them. Let it go on with Unhold. If another has got the
// slot meanwhile, or it was released, Unpark is AcquireSlot and Hold of the same index or
// any, and nothing that the guest had open goes on; so it is if a program of the host has
// the slot's address for itself now. If it fails a parked slot stays parked.
func (n *Network) Unpark(ctx context.Context, slot Slot) (Slot, error) {
	back, err := n.unpark(ctx, slot)
	if errors.Is(err, unix.EADDRINUSE) && ctx.Err() == nil {
		other, err := n.acquireHeld(ctx, noIndex)
		if err == nil {
			n.log.WarnContext(ctx, "the address of a parked network slot is in use; its guest gets another, and loses its connections",
				"slot", slot.Index, "new", other.Index)
			n.Retire(ctx, slot)
		}
		return other, err
	}
	if err != nil {
		return Slot{}, failed(ctx, err, "cannot set up network slot %d", slot.Index)
	}
	if back {
		return slot, nil
	}
	return n.acquireHeld(ctx, slot.Index)
}

// acquireHeld is AcquireSlot and Hold.
func (n *Network) acquireHeld(ctx context.Context, prefer int) (Slot, error) {
	slot, err := n.AcquireSlot(ctx, prefer)
	if err != nil {
		return Slot{}, err
	}
	if err := n.Hold(ctx, slot); err != nil {
		return Slot{}, errors.Join(err, n.Release(ctx, slot))
	}
	return slot, nil
}

// unpark reports whether the slot was parked under slot's own lease, and so is back. One
// that a killed process left half-way there counts too.
func (n *Network) unpark(ctx context.Context, slot Slot) (bool, error) {
	if !slot.valid() || !n.plan.made(slot) || slot.Lease == "" {
		return false, nil
	}
	defer n.busy.lock(slot.Index)()
	found, mine, err := n.leases.mine(slot.Index)
	if err != nil || !mine || found.ID != slot.Lease || n.holdings.has(slot.Index) {
		return false, err
	}
	return true, n.reopen(ctx, slot, found, held)
}

// reopen builds a parked slot again under slot's lease; if it fails it is parked as before.
func (n *Network) reopen(ctx context.Context, slot Slot, was lease, state standing) error {
	if err := n.leases.rewrite(slot.Index, lease{ID: slot.Lease}); err != nil {
		return err
	}
	if err := n.build(ctx, slot, parked, state); err != nil {
		return errors.Join(err, n.leases.rewrite(slot.Index, was))
	}
	return nil
}

// takeParked makes a slot in the place of the one that has been parked for longest.
func (n *Network) takeParked(ctx context.Context) (_ Slot, taken bool, err error) {
	for ctx.Err() == nil {
		ours, err := n.leases.ours()
		if err != nil {
			return Slot{}, false, fault.Wrap(err, fault.HostUnavailable, "cannot read the register of network slots in %s", n.config.LeaseDir)
		}
		oldest := noIndex
		for index, found := range ours {
			if !found.ParkedAt.IsZero() && index < n.plan.capacity() &&
				(oldest == noIndex || found.ParkedAt.Before(ours[oldest].ParkedAt)) {
				oldest = index
			}
		}
		if oldest == noIndex {
			return Slot{}, false, nil
		}
		slot, taken, err := n.replace(ctx, oldest, ours[oldest].ID)
		if err != nil {
			return Slot{}, false, failed(ctx, err, "cannot set up network slot %d", oldest)
		}
		if taken {
			return slot, true, nil
		}
	}
	return Slot{}, false, ctx.Err()
}

// replace gives the parked slot of index to another guest, unless its lease has changed.
func (n *Network) replace(ctx context.Context, index int, id string) (Slot, bool, error) {
	defer n.busy.lock(index)()
	found, mine, err := n.leases.mine(index)
	if err != nil || !mine || found.ID != id || found.ParkedAt.IsZero() {
		return Slot{}, false, err
	}
	// From here on the guest that was parked cannot come back to its connections.
	n.forget(index)
	slot := n.plan.slot(index)
	slot.Lease = newLeaseID()
	if err := n.reopen(ctx, slot, lease{ID: newLeaseID(), ParkedAt: found.ParkedAt}, admitted); err != nil {
		return Slot{}, false, err
	}
	return slot, true, nil
}
