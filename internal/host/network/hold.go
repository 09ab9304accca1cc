package network

import (
	"context"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Hold lets no packet through to the guest or from it any more, of connections that are
// there or new, to the host or the world, until Unhold. Nobody is told: who sends, sends
// again. It may be called any number of times, outlives this process, and ends with the
// slot. What was on its way already when Hold was called may still arrive.
func (n *Network) Hold(ctx context.Context, slot Slot) error { return n.stand(ctx, slot, held) }

// Unhold takes Hold back. A slot that is not held is no error.
func (n *Network) Unhold(ctx context.Context, slot Slot) error { return n.stand(ctx, slot, admitted) }

// Held reports whether a slot of this instance is held.
func (n *Network) Held(ctx context.Context, slot Slot) (bool, error) {
	if err := n.mustOwn(ctx, slot); err != nil {
		return false, err
	}
	links, err := n.firewall.heldLinks()
	if err != nil {
		return false, failed(ctx, err, "cannot read the firewall of network slot %d", slot.Index)
	}
	return links[slot.Link], nil
}

// stand gives a slot that is there another standing.
func (n *Network) stand(ctx context.Context, slot Slot, state standing) error {
	defer n.busy.lock(slot.Index)()
	if err := n.mustOwn(ctx, slot); err != nil {
		return err
	}
	if err := n.firewall.put(slot, state); err != nil {
		return failed(ctx, err, "cannot change the firewall of network slot %d", slot.Index)
	}
	return nil
}

// mustOwn returns fault.NotFound unless slot is one of this instance that is there.
func (n *Network) mustOwn(ctx context.Context, slot Slot) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !slot.valid() || !n.plan.made(slot) {
		return fault.New(fault.InvalidRequest, "slot %d is no network slot", slot.Index)
	}
	owned, err := n.owned(slot)
	if err != nil {
		return failed(ctx, err, "cannot read the register of network slots in %s", n.config.LeaseDir)
	}
	if !owned {
		return fault.New(fault.NotFound, "network slot %d no longer exists", slot.Index)
	}
	return nil
}
