package gvisor

import (
	"testing"
)

// BenchmarkUsage is one look at an idle sandbox, which happens twice a second for each.
func BenchmarkUsage(b *testing.B) {
	p := newPlace(b)
	spec := p.sleeper(b, "usage", p.slot(b))
	if err := p.driver.Start(b.Context(), spec); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.driver.Usage(b.Context(), spec.ID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkThawed is a thaw of a sandbox that runs: the price of asking.
func BenchmarkThawed(b *testing.B) {
	p := newPlace(b)
	spec := p.sleeper(b, "thawed", p.slot(b))
	if err := p.driver.Start(b.Context(), spec); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := p.driver.Thaw(b.Context(), spec.ID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTasks is what it costs to ask a sentry for its guest's processes.
func BenchmarkTasks(b *testing.B) {
	p := newPlace(b)
	spec := p.sleeper(b, "asked", p.slot(b))
	if err := p.driver.Start(b.Context(), spec); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		_, _ = p.driver.guestTasks(spec.ID) // a guest without the daemon has no such cgroup; the price is the same
	}
}
