package gvisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A start has more processors than the guest; when it is over the guest has its own.
func TestQuotaBeginsWithTheGuest(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.sleeper(t, "quota", slot)
	spec.Limits.VCPUs = 1
	if got := *ociResources(spec.Limits, 0).CPU.Quota; got != 2*cpuPeriodMicros {
		t.Errorf("a start has %d µs of each %d", got, cpuPeriodMicros)
	}
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	c := p.driver.cgroups
	path := filepath.Join(cgroupRoot, "cpu", c.parent, spec.ID, "cpu.cfs_quota_us")
	if c.v2 {
		path = filepath.Join(cgroupRoot, c.parent, spec.ID, "cpu.max")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(text))[0]; got != "100000" {
		t.Errorf("the guest has %s µs of each 100000, not one processor", got)
	}
}
