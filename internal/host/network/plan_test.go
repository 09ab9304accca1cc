package network

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestSlotFollowsFromIndex(t *testing.T) {
	p := plan{prefix: defaultPrefix}
	want := Slot{
		Index: 65, Namespace: "/run/netns/wrenn-65", Link: "wrn65",
		Gateway: netip.MustParseAddr("10.113.1.5"), Guest: netip.MustParsePrefix("10.113.1.6/30"),
	}
	if diff := cmp.Diff(want, p.slot(65), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("slot 65 (-want +got):\n%s", diff)
	}
	last := p.slot(p.capacity() - 1)
	if got := last.Guest.Addr().String(); got != "10.113.255.254" {
		t.Errorf("the last guest is %s", got)
	}
	if (Slot{}).valid() {
		t.Error("a zero slot passes for slot 0")
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Instance: "00c0ffee", DataDir: "/data"}
	if err := good.complete(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"short instance":     func(c *Config) { c.Instance = "c0ffee" },
		"upper-case":         func(c *Config) { c.Instance = "00C0FFEE" },
		"no data directory":  func(c *Config) { c.DataDir = "" },
		"relative":           func(c *Config) { c.DataDir = "data" },
		"relative leases":    func(c *Config) { c.LeaseDir = "leases" },
		"IPv6":               func(c *Config) { c.Prefix = netip.MustParsePrefix("fd00::/64") },
		"no room for a slot": func(c *Config) { c.Prefix = netip.MustParsePrefix("10.0.0.0/31") },
		"the whole internet": func(c *Config) { c.Prefix = netip.MustParsePrefix("0.0.0.0/0") },
	} {
		c := good
		change(&c)
		if err := c.complete(); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLeases(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "slots")
	mine := leases{dir: dir, owner: owner{Instance: "0000000a", DataDir: t.TempDir()}}
	other := leases{dir: dir, owner: owner{Instance: "0000000b", DataDir: "/no/such/directory"}}
	if err := errors.Join(mine.register(), other.register(), mine.register()); err != nil {
		t.Fatal(err)
	}
	claim := func(l leases, index int, want bool) {
		t.Helper()
		if _, got, err := l.claim(index); err != nil || got != want {
			t.Errorf("claim of %d by %s: %t, %v, want %t", index, l.owner.Instance, got, err, want)
		}
	}
	claim(mine, 7, true)
	claim(mine, 7, false)
	claim(other, 7, false)
	claim(other, 8, true)
	// Not ours to understand, and so taken.
	if err := os.WriteFile(mine.path(9), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	claim(mine, 9, false)

	all, err := mine.all()
	owners := make(map[int]owner)
	for index, found := range all {
		owners[index] = found.owner
	}
	if diff := cmp.Diff(map[int]owner{7: mine.owner, 8: other.owner}, owners); err != nil || diff != "" {
		t.Errorf("all: %v (-want +got):\n%s", err, diff)
	}
	if dead, err := mine.deadOwners(); err != nil || !cmp.Equal(dead, []owner{other.owner}) {
		t.Errorf("dead owners: %v, %v", dead, err)
	}
	if _, ok, err := mine.mine(8); ok || err != nil {
		t.Errorf("mine(8): %t, %v", ok, err)
	}
	if err := errors.Join(mine.drop(7), mine.drop(7)); err != nil {
		t.Fatal(err)
	}
	if _, err := mine.get(7); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dropped lease: %v", err)
	}
	// The owner's file is cleaned away under a running process.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	claim(mine, 7, true)
}

func TestIntervals(t *testing.T) {
	var got []string
	for _, element := range intervals([]netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
	}) {
		addr, _ := netip.AddrFromSlice(element.Key)
		if element.IntervalEnd {
			got = append(got, "end "+addr.String())
		} else {
			got = append(got, addr.String())
		}
	}
	want := []string{"0.0.0.0", "end 1.0.0.0", "10.1.0.0", "end 10.2.0.0", "224.0.0.0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("intervals (-want +got):\n%s", diff)
	}
}
