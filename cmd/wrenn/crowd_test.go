package main

import "testing"

func TestFilesAreSharedOut(t *testing.T) {
	for _, limit := range []uint64{1024, 4096, 20_000, 524_288, 1 << 30, ^uint64(0)} {
		b := shareFiles(limit)
		// A visit's connection is one of the connections.
		if used := uint64((visitFiles-1)*b.visits + b.connections); used > limit-ownFiles {
			t.Errorf("of %d file descriptors %d are given away", limit, used)
		}
		if b.visits < 100 || b.connections < b.visits+b.visits/spareShare {
			t.Errorf("%d file descriptors are %+v", limit, b)
		}
	}
	if b := shareFiles(10); b.visits != minVisits {
		t.Errorf("of next to none come %+v", b)
	}
}
