package network

import (
	"context"
	"errors"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// AcquireSlot is Acquire of the slot of the index prefer, if nobody has it, or else of any;
// -1 prefers none. It is a new slot either way: what an earlier guest of it had open does
// not go on, for which there is Unpark.
func (n *Network) AcquireSlot(ctx context.Context, prefer int) (Slot, error) {
	if prefer >= 0 && prefer < n.plan.capacity() {
		slot, claimed, err := n.tryAcquire(ctx, prefer)
		if err != nil || claimed {
			return slot, err
		}
	}
	return n.Acquire(ctx)
}

// Acquire makes a slot that nobody else has. If it fails nothing is left of it. The
// error is fault.HostUnavailable if all slots are in use or the kernel refuses one.
func (n *Network) Acquire(ctx context.Context) (Slot, error) {
	for range n.plan.capacity() {
		if err := ctx.Err(); err != nil {
			return Slot{}, err
		}
		index := int(n.cursor.Add(1)-1) % n.plan.capacity()
		slot, claimed, err := n.tryAcquire(ctx, index)
		if err != nil || claimed {
			return slot, err
		}
	}
	slot, taken, err := n.takeParked(ctx)
	if err != nil || taken {
		return slot, err
	}
	return Slot{}, fault.New(fault.HostUnavailable,
		"all %d network slots of this host are in use; remove sandboxes that are no longer needed and try again", n.plan.capacity())
}

// tryAcquire makes the slot of index, unless it is taken.
func (n *Network) tryAcquire(ctx context.Context, index int) (_ Slot, claimed bool, err error) {
	slot := n.plan.slot(index)
	if !n.plan.usable(slot) {
		return Slot{}, false, nil
	}
	unlock, idle := n.busy.tryLock(index)
	if !idle {
		return Slot{}, false, nil // it is just being given back, or taken
	}
	defer unlock()
	if slot.Lease, claimed, err = n.leases.claim(index); err != nil {
		return Slot{}, false, fault.Wrap(err, fault.HostUnavailable, "cannot write the register of network slots in %s", n.config.LeaseDir)
	}
	if !claimed {
		return Slot{}, false, nil
	}
	if err := n.build(ctx, slot, absent, admitted); err != nil {
		err = errors.Join(err, n.leases.drop(index))
		return Slot{}, false, failed(ctx, err, "cannot set up network slot %d", index)
	}
	return slot, true, nil
}

// Configure puts the address and the default route back onto the guest's end. The
// runtime takes them away at every start and restore, so it is to be called before each.
// It may be called any number of times.
func (n *Network) Configure(ctx context.Context, slot Slot) error {
	if !slot.valid() {
		return fault.New(fault.InvalidRequest, "slot %d is no network slot", slot.Index)
	}
	defer n.busy.lock(slot.Index)()
	err := inNamespace(ctx, slot, func(ns *namespace) error { return configureGuest(slot, ns) })
	if err != nil {
		return failed(ctx, err, "cannot configure network slot %d", slot.Index)
	}
	return nil
}

// Release takes down everything that belongs to the slot, parked or not, and returns when
// it is gone. A slot that is not, or no longer, this instance's is left alone, so it may
// be called again, also after an error. It finishes even if ctx ends: half a slot is of
// no use to anyone.
func (n *Network) Release(ctx context.Context, slot Slot) error {
	if !slot.valid() {
		return nil
	}
	defer n.busy.lock(slot.Index)()
	found, mine, err := n.leases.mine(slot.Index)
	if err == nil && mine && found.of(slot) {
		err = n.release(slot.Index)
	}
	if err != nil {
		return failed(context.WithoutCancel(ctx), err, "cannot release network slot %d", slot.Index)
	}
	return nil
}

// Retire is Release that does not wait. Close does; and what a crash leaves of the slot is
// found by the next Sweep, since nobody else gets it while there is anything of it.
func (n *Network) Retire(ctx context.Context, slot Slot) {
	n.retiring.Go(func() {
		if err := n.Release(ctx, slot); err != nil {
			n.log.ErrorContext(ctx, "cannot release a network slot; the next start tries again", "slot", slot.Index, "error", err)
		}
	})
}

// failed makes the error of a call that this host could not carry out; an end of ctx
// stays what it is.
func failed(ctx context.Context, cause error, format string, args ...any) error {
	if ctx.Err() != nil || fault.CodeOf(cause) != fault.Internal {
		return cause
	}
	return fault.Wrap(cause, fault.HostUnavailable, format, args...)
}
