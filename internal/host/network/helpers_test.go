package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
)

const (
	// patience bounds every wait of these tests.
	patience = 10 * time.Second

	// dialTimeout bounds a connection attempt that is to be answered.
	dialTimeout = 3 * time.Second

	// dropTimeout is how long to wait for an answer that is not to come.
	dropTimeout = 500 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testWriter sends log lines to the test's output.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) { w.t.Log(string(p)); return len(p), nil }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run this test as root: it makes network namespaces")
	}
}

// newConfig is a configuration of an instance of its own. The lease directory is the
// machine's real one: the tests share the machine with whatever else runs on it.
func newConfig(t testing.TB) Config {
	t.Helper()
	needRoot(t)
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		t.Fatal(err)
	}
	return Config{
		Instance: hex.EncodeToString(id),
		DataDir:  t.TempDir(),
		Log:      slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

// open opens a Network that is swept and closed at the test's end, when nothing of the
// instance may be left on the machine.
func open(t testing.TB, c Config) *Network {
	t.Helper()
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		_ = n.Close()
		last, err := Open(ctx, c)
		if err != nil {
			t.Errorf("Open to clean up: %v", err)
			return
		}
		if err := errors.Join(last.Sweep(ctx, nil), last.Close()); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if hasTable(t, c.Instance) {
			t.Errorf("table of instance %s is left", c.Instance)
		}
		if left, err := last.leases.ours(); err != nil || len(left) > 0 {
			t.Errorf("leases left: %v, %v", left, err)
		}
	})
	return n
}

func mustAcquire(t testing.TB, n *Network) Slot {
	t.Helper()
	slot, err := n.Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return slot
}

func hasTable(t testing.TB, instance string) bool {
	t.Helper()
	tables, err := new(nftables.Conn).ListTables()
	if err != nil {
		t.Fatalf("list tables: %v", err)
	}
	for _, table := range tables {
		if table.Name == tablePrefix+instance {
			return true
		}
	}
	return false
}

// elements counts the elements of the sets that slots are in.
func elements(t testing.TB, f *firewall) int {
	t.Helper()
	total := 0
	for _, set := range []*nftables.Set{f.links, f.guests, f.gateways, f.held, f.parked} {
		found, err := new(nftables.Conn).GetSetElements(set)
		if err != nil {
			t.Fatalf("elements of %s: %v", set.Name, err)
		}
		total += len(found)
	}
	return total
}

// traces says what of a slot exists on the machine.
func traces(t testing.TB, n *Network, slot Slot) []string {
	t.Helper()
	var found []string
	if _, err := os.Lstat(slot.Namespace); err == nil {
		found = append(found, slot.Namespace)
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(slot.Link); err == nil {
		found = append(found, slot.Link)
	} else if !isNoLink(err) {
		t.Fatal(err)
	}
	if _, mine, err := n.leases.mine(slot.Index); err != nil {
		t.Fatal(err)
	} else if mine {
		found = append(found, "lease")
	}
	return found
}

// inside runs f on a thread in the network namespace at path. Sockets that f itself
// opens, to literal addresses, are in that namespace.
func inside[T any](t testing.TB, path string, f func() (T, error)) (T, error) {
	t.Helper()
	return onOwnThread(func() (T, error) {
		var zero T
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return zero, err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return zero, err
		}
		return f()
	})
}

// dialFrom connects from within the namespace at path.
func dialFrom(t testing.TB, path, network string, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	return inside(t, path, func() (net.Conn, error) {
		return net.DialTimeout(network, to.String(), dialTimeout)
	})
}

// greet serves TCP on listener until the test ends: each caller is told the address that
// it appears under.
func greet(t testing.TB, listener net.Listener) netip.AddrPort {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(conn.RemoteAddr().String()))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return netip.MustParseAddrPort(listener.Addr().String())
}

// listenIn listens on TCP within the namespace at path ("" for the host's).
func listenIn(t testing.TB, path, address string) net.Listener {
	t.Helper()
	listen := func() (net.Listener, error) { return net.Listen("tcp4", address) }
	var listener net.Listener
	var err error
	if path == "" {
		listener, err = listen()
	} else {
		listener, err = inside(t, path, listen)
	}
	if err != nil {
		t.Fatalf("listen on %s: %v", address, err)
	}
	return listener
}

// resolvConf writes a resolver file that names servers.
func resolvConf(t testing.TB, servers ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var content []byte
	for _, server := range servers {
		content = append(content, "nameserver "+server+"\n"...)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// upstreamAnswer is the address of every name that startUpstream's server knows.
const upstreamAnswer = "192.0.2.77"

// startUpstream runs a DNS server on port 53 of a loopback address of its own.
func startUpstream(t testing.TB) netip.Addr {
	t.Helper()
	needRoot(t)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		reply := new(dns.Msg).SetReply(query)
		if query.Question[0].Qtype == dns.TypeA {
			record, err := dns.NewRR(query.Question[0].Name + " 60 IN A " + upstreamAnswer)
			if err != nil {
				t.Error(err)
			}
			reply.Answer = append(reply.Answer, record)
		}
		_ = w.WriteMsg(reply)
	})
	addr := netip.AddrFrom4([4]byte{127, 53, byte(mathrand.IntN(250) + 1), byte(mathrand.IntN(250) + 1)})
	at := netip.AddrPortFrom(addr, dnsPort).String()
	packets, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: listener, Handler: handler}} {
		ready, done := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		go func() {
			defer close(done)
			_ = server.ActivateAndServe()
		}()
		<-ready
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-done
		})
	}
	return addr
}

// question is a packed DNS query.
func question(t testing.TB) []byte {
	t.Helper()
	packed, err := new(dns.Msg).SetQuestion("example.test.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packed
}
