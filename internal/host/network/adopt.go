package network

import (
	"context"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Adopt takes over a slot of this instance that an earlier process has left, with its
// guest running: it serves DNS to it again and makes sure of its rules. The error is
// fault.NotFound if the slot no longer exists, or is parked. A slot that is in use already
// is fine, and one that is held stays held.
func (n *Network) Adopt(ctx context.Context, slot Slot) (err error) {
	if !slot.valid() || slot.Index >= n.plan.capacity() || !n.plan.made(slot) {
		return fault.New(fault.InvalidRequest, "network slot %d was made with other settings of the sandbox network", slot.Index)
	}
	defer n.busy.lock(slot.Index)()
	if n.holdings.has(slot.Index) {
		return nil
	}
	if err := n.check(ctx, slot); err != nil {
		return err
	}
	if err := n.holdings.put(slot.Index, nil); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			n.holdings.take(slot.Index)
		}
	}()
	if err := n.firewall.admit(slot); err != nil {
		return failed(ctx, err, "cannot take over network slot %d", slot.Index)
	}
	server, err := n.serveDNS(ctx, slot)
	if err != nil {
		return failed(ctx, err, "cannot take over network slot %d", slot.Index)
	}
	if err := n.holdings.put(slot.Index, server); err != nil {
		server.Close()
		return err
	}
	return nil
}
