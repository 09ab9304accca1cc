package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/network/dnsforward"
)

// Acquire makes a slot that nobody else has. If it fails nothing is left of it. The
// error is fault.HostUnavailable if all slots are in use or the kernel refuses one.
func (n *Network) Acquire(ctx context.Context) (Slot, error) {
	for range n.plan.capacity() {
		if err := ctx.Err(); err != nil {
			return Slot{}, err
		}
		index := int(n.cursor.Add(1)-1) % n.plan.capacity()
		slot, claimed, err := n.tryAcquire(ctx, index)
		if err != nil {
			return Slot{}, err
		}
		if claimed {
			return slot, nil
		}
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
	defer n.lock(index)()
	claimed, err = n.leases.claim(index)
	if err != nil {
		return Slot{}, false, fault.Wrap(err, fault.HostUnavailable, "cannot write the register of network slots in %s", n.config.LeaseDir)
	}
	if !claimed {
		return Slot{}, false, nil
	}
	if err := n.build(ctx, slot); err != nil {
		return Slot{}, false, failed(ctx, err, "cannot set up network slot %d", index)
	}
	return slot, true, nil
}

// build makes everything that belongs to the slot, whose lease the caller has just
// claimed; on failure it takes everything back, the lease last.
func (n *Network) build(ctx context.Context, slot Slot) (err error) {
	var undo undo
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	undo.add(func() error { return n.leases.drop(slot.Index) })
	if err := n.holdings.put(slot.Index, nil); err != nil {
		return err
	}
	undo.add(func() error { n.holdings.take(slot.Index); return nil })

	// Whatever is there already was left by a process that died, under a lease that has
	// since vanished: nobody else can have it while the lease is ours.
	if err := dismantle(slot.Index); err != nil {
		return fmt.Errorf("remove leftovers: %w", err)
	}
	// The rules come before the link, so that there is no moment without them.
	undo.add(func() error { return n.firewall.expel(slot) })
	if err := n.firewall.admit(slot); err != nil {
		return fmt.Errorf("admit to the firewall: %w", err)
	}
	undo.add(func() error { return dismantle(slot.Index) })
	if err := n.connect(ctx, slot); err != nil {
		return err
	}
	server, err := n.serveDNS(ctx, slot)
	if err != nil {
		return err
	}
	undo.add(func() error { server.Close(); return nil })
	return n.holdings.put(slot.Index, server)
}

// connect makes the namespace and the link into it.
func (n *Network) connect(ctx context.Context, slot Slot) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ns, err := createNamespace(slot.Namespace)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	defer ns.Close()
	if err := createLink(slot, n.mtu, ns); err != nil {
		return err
	}
	return configureGuest(slot, ns)
}

// dismantle removes the link and the namespace of an index, as far as they exist.
func dismantle(index int) error {
	return errors.Join(removeLink(linkName(index)), removeNamespace(namespacePath(index)))
}

func (n *Network) serveDNS(ctx context.Context, slot Slot) (*dnsforward.Server, error) {
	server, err := n.dns.Serve(ctx, netip.AddrPortFrom(slot.Gateway, dnsPort), slot.Guest.Addr())
	if err != nil {
		return nil, fmt.Errorf("serve DNS to slot %d (a DNS server of the host that listens on all addresses is in the way; "+
			"let it listen on the addresses it is for): %w", slot.Index, err)
	}
	return server, nil
}

// Configure puts the address and the default route back onto the guest's end. The
// runtime takes them away at every start and restore, so it is to be called before each.
// It may be called any number of times.
func (n *Network) Configure(ctx context.Context, slot Slot) error {
	if !slot.valid() {
		return fault.New(fault.InvalidRequest, "slot %d is no network slot", slot.Index)
	}
	defer n.lock(slot.Index)()
	err := inNamespace(ctx, slot, func(ns *namespace) error { return configureGuest(slot, ns) })
	if err != nil {
		return failed(ctx, err, "cannot configure network slot %d", slot.Index)
	}
	return nil
}

// Release takes down everything that belongs to the slot. A slot that is not, or no
// longer, this instance's is left alone, so it may be called again, also after an error.
// It finishes even if ctx ends: half a slot is of no use to anyone.
func (n *Network) Release(ctx context.Context, slot Slot) error {
	if !slot.valid() {
		return nil
	}
	defer n.lock(slot.Index)()
	if err := n.release(slot.Index); err != nil {
		return failed(context.WithoutCancel(ctx), err, "cannot release network slot %d", slot.Index)
	}
	return nil
}

// release takes down the slot of index, the lease last: while there is anything of it,
// nobody else may claim it. The caller holds the index's lock.
func (n *Network) release(index int) error {
	mine, err := n.leases.mine(index)
	if err != nil {
		return err
	}
	if !mine {
		n.holdings.take(index)
		return nil
	}
	if server := n.holdings.take(index); server != nil {
		server.Close()
	}
	if err := dismantle(index); err != nil {
		return err
	}
	slot := n.plan.slot(index)
	if err := n.firewall.expel(slot); err != nil {
		return fmt.Errorf("remove from the firewall: %w", err)
	}
	if err := forgetConnections(slot.Guest.Addr()); err != nil {
		n.log.Warn("cannot drop the connections of a released slot", "slot", index, "error", err)
	}
	return n.leases.drop(index)
}

// Adopt takes over a slot of this instance that an earlier process has left, with its
// guest running: it serves DNS to it again and makes sure of its rules. The error is
// fault.NotFound if the slot no longer exists. A slot that is in use already is fine.
func (n *Network) Adopt(ctx context.Context, slot Slot) (err error) {
	if !slot.valid() || slot.Index >= n.plan.capacity() || slot != n.plan.slot(slot.Index) {
		return fault.New(fault.InvalidRequest, "network slot %d was made with other settings of the sandbox network", slot.Index)
	}
	defer n.lock(slot.Index)()
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

// failed makes the error of a call that this host could not carry out; an end of ctx
// stays what it is.
func failed(ctx context.Context, cause error, format string, args ...any) error {
	if ctx.Err() != nil || fault.CodeOf(cause) != fault.Internal {
		return cause
	}
	return fault.Wrap(cause, fault.HostUnavailable, format, args...)
}
