package gvisor

import (
	"testing"
	"time"
)

// A sentry has more memory than its guest's limit while it writes that down, and the limit
// is what it was as soon as the guest goes on, also when another agent lets it.
func TestLiftedMemoryLimitComesDown(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.sleeper(t, "lifted", slot)
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	limit := func() uint64 {
		t.Helper()
		n, err := p.driver.cgroups.memoryLimit(spec.ID)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	booted := uint64(spec.Limits.MemoryMB+sentryMemoryMB) * mib
	if got := limit(); got != booted {
		t.Fatalf("it began with %d bytes, not %d", got, booted)
	}
	dir := t.TempDir()
	if err := p.driver.Checkpoint(t.Context(), spec.ID, dir); err != nil {
		t.Fatal(err)
	}
	next := p.another(t)
	if got := limit(); got <= booted {
		t.Errorf("frozen it has %d bytes", got)
	}
	if err := next.Thaw(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	comesDown(t, limit, booted)
	// An agent that dies between a thaw and the end of the lowering leaves that to the next.
	if err := p.driver.memory.lift(spec.ID); err != nil {
		t.Fatal(err)
	}
	p.another(t)
	comesDown(t, limit, booted)
	if err := p.driver.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	p.renew(t, slot.Namespace)
	spec.Checkpoint = dir
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	comesDown(t, limit, booted+restoredMemoryMB*mib)
}

func comesDown(t *testing.T, limit func() uint64, want uint64) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); limit() != want; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("it has %d bytes and does not come down to %d", limit(), want)
		}
	}
}

// The guest keeps what it may have while the sentry has not given back what it took, and no
// limit is below what is used.
func TestHowFarALimitComesDown(t *testing.T) {
	was := lifted{Limit: 600 * mib, Sentry: 100 * mib}
	for _, c := range []struct {
		used, sentry uint64
		want         uint64
	}{
		{used: 300 * mib, sentry: 50 * mib, want: 600 * mib},
		{used: 300 * mib, sentry: 150 * mib, want: 650 * mib},
		{used: 700 * mib, sentry: 150 * mib, want: 700*mib + lowerSlack},
	} {
		if got := lowered(was, c.used, c.sentry); got != c.want {
			t.Errorf("%+v: %d MiB", c, got/mib)
		}
	}
}
