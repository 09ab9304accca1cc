package webproxy

import (
	"strconv"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// Certificates are for the one name of each port of sandboxes that there are.
func TestNamesOfCertificates(t *testing.T) {
	b := newBench(t, echo, func(c *Config) { c.Domain = "example.com:8443" })
	c := b.edge.Certificates(100)
	for _, name := range []string{"example.com", "EXAMPLE.com", "3000-" + boxID + ".example.com", "3000-" + strings.ToUpper(boxID) + ".Example.com"} {
		if err := c.Allow(t.Context(), name, false); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "com", "x.example.com", "3000-sbnone.example.com", "0-" + boxID + ".example.com", "3000-" + boxID + ".evil.com",
		"3000-" + boxID + "-x.example.com", "3000-" + boxID + "-.example.com", "3000-" + boxID + ".example.com.", "03000-" + boxID + ".example.com"} {
		for _, stored := range []bool{false, true} {
			if err := c.Allow(t.Context(), name, stored); err == nil {
				t.Errorf("%q is let through", name)
			}
		}
	}
}

func TestBoundsOfCertificates(t *testing.T) {
	const second, third = "sbsecond", "sbthird"
	b := newBench(t, echo, nil, sandbox.Sandbox{ID: boxID, Status: sandbox.Running}, sandbox.Sandbox{ID: second, Status: sandbox.Running},
		sandbox.Sandbox{ID: third, Status: sandbox.Running})
	const more = 5
	c := b.edge.Certificates(maxNames + more)
	ask := func(id string, first, last int, stored bool) (allowed int) {
		for port := first; port <= last; port++ {
			name := strconv.Itoa(port) + "-" + id + ".localhost"
			if c.Allow(t.Context(), name, stored) == nil {
				allowed++
				if c.Allow(t.Context(), strings.ToUpper(name), stored) != nil {
					t.Errorf("%s is let through once only", name)
				}
			}
		}
		return allowed
	}
	if got := ask(boxID, 1, 3*maxNames, false); got != maxNames {
		t.Errorf("one sandbox had %d names", got)
	}
	if got := ask(second, 1, maxNames, false); got != more {
		t.Errorf("of a week's names %d were left", got)
	}
	if got := ask(third, 1, 1, false); got != 0 {
		t.Error("there are more names than a week has")
	}
	// What is there already goes on, as does the domain itself.
	if ask(boxID, 1, maxNames, false) != maxNames || ask(third, 1, maxNames, true) != maxNames || c.Allow(t.Context(), "localhost", false) != nil {
		t.Error("what costs nothing is refused")
	}
}
