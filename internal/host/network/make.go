package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/wrenn-sandbox/wrenn/internal/host/network/dnsforward"
)

// maker makes what belongs to a slot and takes it down. It does not change once it is in
// use; for one index its callers come one at a time.
type maker struct {
	log      *slog.Logger
	leases   leases
	firewall *firewall
	dns      *dnsforward.Forwarder
	holdings *holdings
	removals removals
	plan     plan
	mtu      int // of the host's way out, in bytes
}

// build makes everything that belongs to the slot, whose lease the caller holds, under
// the rules of state. On failure all is as before, and the slot stands as it did.
func (m *maker) build(ctx context.Context, slot Slot, before, state standing) (err error) {
	var undo undo
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	if err := m.holdings.put(slot.Index, nil); err != nil {
		return err
	}
	undo.add(func() error { m.holdings.take(slot.Index); return nil })

	// Whatever is there already was left by a process that died, under a lease that has
	// since vanished: nobody else can have it while the lease is ours.
	if err := dismantle(slot.Index); err != nil {
		return fmt.Errorf("remove leftovers: %w", err)
	}
	// The rules come before the link, so that there is no moment without them.
	undo.add(func() error { return m.firewall.put(slot, before) })
	if err := m.firewall.put(slot, state); err != nil {
		return fmt.Errorf("admit to the firewall: %w", err)
	}
	undo.add(func() error { return dismantle(slot.Index) })
	if err := m.connect(ctx, slot); err != nil {
		return err
	}
	server, err := m.serveDNS(ctx, slot)
	if err != nil {
		return err
	}
	undo.add(func() error { server.Close(); return nil })
	return m.holdings.put(slot.Index, server)
}

// connect makes the namespace and the link into it.
func (m *maker) connect(ctx context.Context, slot Slot) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ns, err := createNamespace(slot.Namespace)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	defer ns.Close()
	if err := createLink(slot, m.mtu, ns); err != nil {
		return err
	}
	return configureGuest(slot, ns)
}

func (m *maker) serveDNS(ctx context.Context, slot Slot) (*dnsforward.Server, error) {
	server, err := m.dns.Serve(ctx, netip.AddrPortFrom(slot.Gateway, dnsPort), slot.Guest.Addr())
	if err != nil {
		return nil, fmt.Errorf("serve DNS to slot %d (a DNS server of the host that listens on all addresses is in the way; "+
			"let it listen on the addresses it is for): %w", slot.Index, err)
	}
	return server, nil
}

// takeDown removes what build has made, and leaves the slot to the firewall as state says;
// unless that is parked, the guest's connections are forgotten.
func (m *maker) takeDown(index int, state standing) error {
	if server := m.holdings.take(index); server != nil {
		server.Close()
	}
	if err := m.removals.dismantle(index, state == absent); err != nil {
		return err
	}
	if err := m.firewall.put(m.plan.slot(index), state); err != nil {
		return fmt.Errorf("remove from the firewall: %w", err)
	}
	return nil
}

// release takes down a slot of this instance and gives its lease back, the lease last:
// while there is anything of the slot, nobody else may claim it.
func (m *maker) release(index int) error {
	if err := m.takeDown(index, absent); err != nil {
		return err
	}
	return m.leases.drop(index)
}

// forget drops the connections of these slots' guests.
func (m *maker) forget(indexes ...int) {
	var guests []netip.Addr
	for _, index := range indexes {
		guests = append(guests, m.plan.slot(index).Guest.Addr())
	}
	if err := forgetConnections(guests...); err != nil {
		m.log.Warn("cannot drop the connections of guests that are gone", "slots", indexes, "error", err)
	}
}
