package network

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/nftables"
)

// TestObstaclesAreNamed sets up other firewalls in a namespace of its own, where they are
// in nobody's way.
func TestObstaclesAreNamed(t *testing.T) {
	c := newConfig(t)
	path := filepath.Join(namespaceDir, "wtest-"+c.Instance)
	ns, err := createNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	t.Cleanup(func() {
		if err := removeNamespace(path); err != nil {
			t.Error(err)
		}
	})
	f := newFirewall(c.Instance, defaultPrefix)
	found, err := inside(t, path, func() ([]string, error) {
		conn := &nftables.Conn{}
		other := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "other"})
		for name, chain := range map[string]nftables.Chain{
			"drops-forwarded": {Hooknum: nftables.ChainHookForward, Policy: policy(nftables.ChainPolicyDrop)},
			"drops-incoming":  {Hooknum: nftables.ChainHookInput, Policy: policy(nftables.ChainPolicyDrop)},
			"drops-outgoing":  {Hooknum: nftables.ChainHookOutput, Policy: policy(nftables.ChainPolicyDrop)},
			"accepts":         {Hooknum: nftables.ChainHookForward, Policy: policy(nftables.ChainPolicyAccept)},
		} {
			chain.Table, chain.Name, chain.Type = other, name, nftables.ChainTypeFilter
			chain.Priority = nftables.ChainPriorityFilter
			conn.AddChain(&chain)
		}
		if err := conn.Flush(); err != nil {
			return nil, err
		}
		if err := errors.Join(f.install(nil), f.close()); err != nil {
			return nil, err
		}
		return f.obstacles(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	if want := []string{"other drops-forwarded", "other drops-incoming"}; !slices.Equal(found, want) {
		t.Errorf("obstacles: %q, want %q", found, want)
	}
}
