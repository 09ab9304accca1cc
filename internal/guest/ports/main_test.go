package ports

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

const (
	// inNamespace makes this program run the tests, in a network of their own; asServer
	// makes it a server that listens on the address which the variable holds.
	inNamespace = "WRENN_TEST_NAMESPACE"
	asServer    = "WRENN_TEST_SERVER"

	outsideAddress = "10.99.0.1"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asServer) != "":
		serve(os.Getenv(asServer))
	case os.Getenv(inNamespace) != "":
		if err := makeNetwork(); err != nil {
			fmt.Fprintln(os.Stderr, "make a network:", err)
			os.Exit(1)
		}
		goleak.VerifyTestMain(m)
	default:
		os.Exit(runInNamespace())
	}
}

// runInNamespace runs the tests in a network namespace, so that the machine's own servers
// are neither seen nor forwarded.
func runInNamespace() int {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// strangers are ports that are listed in a network in which nobody listens yet: gVisor tells
// of the sockets of all networks.
var strangers = make(map[uint16]bool)

// listed returns what s lists, without strangers.
func listed(t *testing.T, s *PortSubsystem) []Port {
	t.Helper()
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(p Port) bool { return strangers[p.Port] })
}

func findStrangers() error {
	table, err := openTable()
	if err != nil {
		return err
	}
	defer table.close()
	list, err := table.read(nil)
	for _, l := range list {
		strangers[l.addr.Port()] = true
	}
	return err
}

func makeNetwork() error {
	if _, err := netlink.LinkByName("eth0"); err == nil {
		return nil // a worker of a fuzzer, inside already
	}
	if err := findStrangers(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "peer"
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(outsideAddress + "/30")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(veth, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(veth)
}

// serve listens until it is killed.
func serve(address string) {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString("listening\n")
	for {
		if conn, err := ln.Accept(); err == nil {
			conn.Close()
		}
	}
}

// patience bounds how long a test waits for something to come true.
const patience = 10 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not so after %v", what, patience)
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newSubsystem returns one that forwards, stopped, and stops it when the test ends. Then
// no file may be left.
func newSubsystem(t *testing.T, own uint16) *PortSubsystem {
	t.Helper()
	before := openFiles(t)
	s := New(Config{Interface: "eth0", Own: own, Logger: quiet()})
	t.Cleanup(func() {
		s.Stop()
		goleak.VerifyNone(t)
		eventually(t, "open files are as many as before", func() bool { return openFiles(t) <= before })
	})
	return s
}

// openFiles counts open sockets, pidfds and tables; the runtime keeps a few pipes for
// splice, which its collector closes.
func openFiles(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, link := range links {
		target, err := os.Readlink(link)
		if err == nil && (len(target) < 5 || target[:5] != "pipe:") {
			n++
		}
	}
	return n
}

func listen(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	network := "tcp4" // or Go makes an IPv6 socket of all addresses
	if address[0] == '[' {
		network = "tcp6"
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

func portOf(ln net.Listener) uint16 { return uint16(ln.Addr().(*net.TCPAddr).Port) }

func outside(port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(outsideAddress), port).String()
}

func dial(t *testing.T, address string) (*net.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), nil
}

func start(t *testing.T, s *PortSubsystem) {
	t.Helper()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// reach waits until an address takes connections and returns one.
func reach(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	var conn *net.TCPConn
	eventually(t, "connect to "+address, func() bool {
		c, err := dial(t, address)
		conn = c
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}
