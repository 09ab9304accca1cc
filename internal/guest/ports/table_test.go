package ports

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	tcp4   = header +
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1 0000000000000000 100 0 0 10 0\n" +
		"   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0000000000000000 100 0 0 10 0\n" +
		"   2: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 12346 1 0000000000000000 20 4 30 10 -1\n" +
		"   3: 0100007F:0000 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1\n" +
		"   4: 0100007G:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8 1\n" +
		"   5: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 x 1\n" +
		"   6: 0100007F:1F92 00000000:0000 0A\n"
	tcp6 = header +
		"   0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1 0000000000000000 100 0 0 10 0\n" +
		"   1: 0000000000000000FFFF00000100007F:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0000000000000000 100 0 0 10 0\n" +
		"   2: 00000000000000000000000000000000:0BBA 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0        23 1" // cut off
)

func TestTables(t *testing.T) {
	at := func(text string, inode uint64, v6 bool) listener {
		return listener{addr: netip.MustParseAddrPort(text), inode: inode, v6: v6}
	}
	got := appendListeners(nil, []byte(tcp4), false)
	if want := []listener{at("127.0.0.1:8080", 12345, false), at("0.0.0.0:22", 99, false)}; !slices.Equal(got, want) {
		t.Errorf("tcp: %v, want %v", got, want)
	}
	got = appendListeners(nil, []byte(tcp6), true)
	if want := []listener{at("[::1]:3000", 21, true), at("127.0.0.1:3001", 22, true), at("[::]:3002", 23, true)}; !slices.Equal(got, want) {
		t.Errorf("tcp6: %v, want %v", got, want)
	}
}

func FuzzTables(f *testing.F) {
	f.Add(tcp4, false)
	f.Add(tcp6, true)
	f.Add(strings.ReplaceAll(tcp4, " ", "  "), true)
	f.Add("\n\n : : 0A\n", false)
	f.Fuzz(func(t *testing.T, content string, v6 bool) {
		list := appendListeners(nil, []byte(content), v6)
		if len(list) > strings.Count(content, "\n")+1 {
			t.Fatalf("%d listeners in %q", len(list), content)
		}
		for _, l := range list {
			if !l.addr.IsValid() || l.addr.Port() == 0 || l.v6 != v6 || l.addr.Addr().Is4In6() {
				t.Fatalf("%+v in %q", l, content)
			}
		}
	})
}

func TestWantedForwards(t *testing.T) {
	eth4, eth6 := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	for name, c := range map[string]struct {
		listeners string
		outside   []netip.Addr
		want      map[string]string
	}{
		"loopback":           {"127.0.0.1:80", []netip.Addr{eth4}, map[string]string{"10.0.0.2:80": "127.0.0.1:80"}},
		"IPv6 loopback":      {"[::1]:80", []netip.Addr{eth4, eth6}, map[string]string{"10.0.0.2:80": "[::1]:80", "[fd00::2]:80": "[::1]:80"}},
		"both":               {"127.0.0.1:80 [::1]:80", []netip.Addr{eth4, eth6}, map[string]string{"10.0.0.2:80": "127.0.0.1:80", "[fd00::2]:80": "[::1]:80"}},
		"by name":            {"127.0.1.1:80 127.0.0.1:80", []netip.Addr{eth4}, map[string]string{"10.0.0.2:80": "127.0.0.1:80"}},
		"everywhere":         {"0.0.0.0:80 [::]:81", []netip.Addr{eth4, eth6}, nil},
		"everywhere as well": {"0.0.0.0:80 127.0.0.1:80", []netip.Addr{eth4, eth6}, map[string]string{"[fd00::2]:80": "127.0.0.1:80"}},
		"outside as well":    {"10.0.0.2:80 127.0.0.1:80", []netip.Addr{eth4}, nil},
		"no outside":         {"127.0.0.1:80", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var listeners []listener
			for _, text := range strings.Fields(c.listeners) {
				listeners = append(listeners, listener{addr: netip.MustParseAddrPort(text)})
			}
			got := wantedForwards(listeners, c.outside)
			if len(got) != len(c.want) {
				t.Fatalf("%v, want %v", got, c.want)
			}
			for at, target := range c.want {
				if got[netip.MustParseAddrPort(at)] != netip.MustParseAddrPort(target) {
					t.Errorf("%v, want %v", got, c.want)
				}
			}
		})
	}
}

func TestForwardsAreBounded(t *testing.T) {
	var listeners []listener
	for port := range uint16(2 * maxForwards) {
		listeners = append(listeners, listener{addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port+1)})
	}
	if got := wantedForwards(listeners, []netip.Addr{netip.MustParseAddr("10.0.0.2")}); len(got) != maxForwards {
		t.Errorf("%d forwards", len(got))
	}
}

// TestLookingCostsNothing: an idle sandbox pays one look a second.
func TestLookingCostsNothing(t *testing.T) {
	for range 100 { // more than one page of table
		listen(t, "127.0.0.1:0")
	}
	table, err := openTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	w := newWatcher(New(Config{Logger: quiet()}), table)
	if changed, err := w.look(); err != nil || !changed || len(w.known) < 100 {
		t.Fatalf("first look: %d listeners, %v, %v", len(w.known), changed, err)
	}
	if _, err := w.look(); err != nil { // the second buffer has its size now
		t.Fatal(err)
	}
	if allocs := testing.AllocsPerRun(100, func() { w.step(t.Context()) }); allocs != 0 {
		t.Errorf("a look allocates %v times", allocs)
	}
}

func BenchmarkLook(b *testing.B) {
	table, err := openTable()
	if err != nil {
		b.Fatal(err)
	}
	defer table.close()
	w := newWatcher(New(Config{Logger: quiet()}), table)
	b.ReportAllocs()
	for b.Loop() {
		w.step(b.Context())
	}
}
