package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Sweep removes what crashes have left: every slot that is leased to this instance,
// parked or not, except those in keep and those that this process uses, and everything of instances
// whose data directory no longer exists. It goes on past failures and returns them all.
func (n *Network) Sweep(ctx context.Context, keep []int) error {
	all, err := n.leases.all()
	if err != nil {
		return failed(ctx, err, "cannot read the register of network slots in %s", n.config.LeaseDir)
	}
	var errs []error
	var orphans []int
	for index, holder := range all {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case holder.Instance != n.config.Instance:
			if !holder.alive() {
				orphans = append(orphans, index)
			}
		case !slices.Contains(keep, index):
			errs = append(errs, n.sweepOurs(index))
		}
	}
	// Two instances may find the same dead owner. Under the lock, and with another look
	// at the lease, one cannot take down what a third has since built in its place.
	errs = append(errs, n.leases.exclusively(ctx, func() error {
		var errs []error
		for _, index := range orphans {
			removed, err := sweepOrphan(n.leases, index)
			if removed {
				n.log.InfoContext(ctx, "removed a network slot whose data directory is gone", "slot", index)
			}
			errs = append(errs, err)
		}
		return errors.Join(append(errs, sweepTables(n.leases))...)
	}))
	if err := errors.Join(errs...); err != nil {
		return failed(ctx, err, "cannot remove the network slots that an earlier process has left")
	}
	return nil
}

// sweepOurs releases a slot of this instance that no living process uses.
func (n *Network) sweepOurs(index int) error {
	defer n.busy.lock(index)()
	if n.holdings.has(index) {
		return nil
	}
	if _, mine, err := n.leases.mine(index); err != nil || !mine {
		return err
	}
	if err := n.release(index); err != nil {
		return fmt.Errorf("slot %d: %w", index, err)
	}
	n.log.Info("removed a network slot that an earlier process has left", "slot", index)
	return nil
}

// sweepOrphan removes a slot whose instance is gone, and reports whether it did. Its
// elements in that instance's table go with the table.
func sweepOrphan(l leases, index int) (bool, error) {
	holder, err := l.get(index)
	if errors.Is(err, fs.ErrNotExist) || err == nil && holder.alive() {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := dismantle(index); err != nil {
		return false, fmt.Errorf("slot %d of instance %s: %w", index, holder.Instance, err)
	}
	return true, l.drop(index)
}

// sweepTables removes the tables of instances that are gone, once no slot is left whose
// guest the table isolates.
func sweepTables(l leases) error {
	dead, err := l.deadOwners()
	if err != nil {
		return err
	}
	all, err := l.all()
	if err != nil {
		return err
	}
	inUse := make(map[string]bool)
	for _, holder := range all {
		inUse[holder.Instance] = true
	}
	var errs []error
	for _, o := range dead {
		if inUse[o.Instance] {
			continue
		}
		gone := newFirewall(o.Instance, defaultPrefix)
		if err := errors.Join(gone.remove(), gone.close()); err != nil {
			errs = append(errs, fmt.Errorf("table of instance %s: %w", o.Instance, err))
			continue
		}
		errs = append(errs, removeFile(l.ownerPath(o.Instance)))
	}
	return errors.Join(errs...)
}

// check makes sure that a slot of this instance is all there.
func (n *Network) check(ctx context.Context, slot Slot) error {
	gone := func(cause error) error {
		return fault.Wrap(cause, fault.NotFound, "network slot %d no longer exists", slot.Index)
	}
	mine, err := n.owned(slot)
	if err != nil {
		return failed(ctx, err, "cannot read the register of network slots in %s", n.config.LeaseDir)
	}
	if !mine {
		return gone(nil)
	}
	if _, err := netlink.LinkByName(slot.Link); err != nil {
		if isNoLink(err) {
			return gone(err)
		}
		return failed(ctx, err, "cannot look at network slot %d", slot.Index)
	}
	err = inNamespace(ctx, slot, func(ns *namespace) error {
		_, err := ns.routes.LinkByName(guestLink)
		return err
	})
	if isNoLink(err) || errors.Is(err, fs.ErrNotExist) {
		return gone(err)
	}
	if err != nil {
		return failed(ctx, err, "cannot look at network slot %d", slot.Index)
	}
	return nil
}
