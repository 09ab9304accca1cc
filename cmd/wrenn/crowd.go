package main

import (
	"log/slog"
	"syscall"
)

// A visit to a port of a sandbox costs up to four file descriptors: its client's connection,
// the one to the guest, and, where it is upgraded or has a body, both ends of one to the host
// agent, which is in this process too.
const (
	visitFiles = 4
	// ownFiles is what is kept for everything else, at least: sandboxes, the database, files.
	ownFiles = 512
	// ownShare is which part of the limit is kept for that when it is more.
	ownShare = 16
	// spareShare is which part of the visits there are connections more than visits: for
	// the API, its terminals, and who is idle.
	spareShare = 4
	// minVisits is how many there are at least, however low the limit is.
	minVisits = 16
)

// budget is what the listeners may have open.
type budget struct {
	// visits is how many requests and upgraded connections to ports of sandboxes, and
	// connections how many of clients, of visits and all others.
	visits, connections int
}

// fileBudget shares the process's file descriptors out, so that it never lacks them.
func fileBudget(log *slog.Logger) (budget, error) {
	var limit syscall.Rlimit
	// The soft limit is the hard one by now: Go raises it when a program starts, and lowers
	// it again for the programs that are started from it.
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return budget{}, err
	}
	b := shareFiles(limit.Cur)
	log.Debug("file descriptors are shared out", "limit", limit.Cur, "visits", b.visits, "connections", b.connections)
	return b, nil
}

// shareFiles is fileBudget for a limit.
func shareFiles(limit uint64) budget {
	const most = 1 << 24 // what Linux has room for is less, and products of it fit
	n := int(min(limit, most))
	rest := max(n-max(n/ownShare, ownFiles), 0)
	// rest = visits × (visitFiles + 1/spareShare)
	visits := max(rest*spareShare/(visitFiles*spareShare+1), minVisits)
	return budget{visits: visits, connections: visits + visits/spareShare}
}
