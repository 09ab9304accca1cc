package freeze

import (
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule says what is dropped where.
type rule struct {
	hook  *nftables.ChainHook
	match []expr.Any
}

// The flags of a TCP header that end a connection, and where they are in it, in bytes.
const (
	tcpFlagsOffset = 13
	tcpFinOrReset  = 0x01 | 0x04
)

// farewells are what ends connections and comes in over a link.
func farewells(link string) rule {
	return rule{nftables.ChainHookInput, append(passing(expr.MetaKeyIIFNAME, link),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpFinOrReset}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
	)}
}

// everythingTo is what goes out over a link.
func everythingTo(link string) rule {
	return rule{nftables.ChainHookOutput, passing(expr.MetaKeyOIFNAME, link)}
}

func passing(key expr.MetaKey, link string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, link)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}}
}

// block drops what a rule says until the returned function is called.
func block(t *testing.T, name string, r rule) (end func()) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "wrenn-test-freeze-" + name})
	chain := conn.AddChain(&nftables.Chain{
		Name: "chain", Table: table, Type: nftables.ChainTypeFilter, Hooknum: r.hook, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(r.match, &expr.Verdict{Kind: expr.VerdictDrop})})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	}
}
