package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// sleeper is a socket that sleeps as in a snapshot: it is the same connection after, and
// does not exist meanwhile (tcp(7), TCP_REPAIR).
type sleeper struct {
	local, remote netip.AddrPort
	send, receive uint32 // sequence numbers
}

const (
	tcpRepair      = 19
	tcpRepairQueue = 20
	tcpQueueSeq    = 21
	receiveQueue   = 1
	sendQueue      = 2
)

// sleep takes a connection out of the kernel without telling its peer.
func sleep(t testing.TB, conn net.Conn) sleeper {
	t.Helper()
	s := sleeper{
		local:  netip.MustParseAddrPort(conn.LocalAddr().String()),
		remote: netip.MustParseAddrPort(conn.RemoteAddr().String()),
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(descriptor uintptr) {
		fd := int(descriptor)
		set := func(option, value int) {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value))
		}
		sequence := func(queue int) uint32 {
			set(tcpRepairQueue, queue)
			value, getErr := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, tcpQueueSeq)
			err = errors.Join(err, getErr)
			return uint32(value)
		}
		set(tcpRepair, 1)
		s.send, s.receive = sequence(sendQueue), sequence(receiveQueue)
	})
	// In repair mode a close says nothing.
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatalf("put a connection to sleep: %v", err)
	}
	return s
}

// wake puts the connection back, in the namespace at path.
func (s sleeper) wake(t testing.TB, path string) net.Conn {
	t.Helper()
	conn, err := inside(t, path, func() (net.Conn, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		set := func(option, value int) {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value))
		}
		set(tcpRepair, 1)
		for queue, sequence := range map[int]uint32{sendQueue: s.send, receiveQueue: s.receive} {
			set(tcpRepairQueue, queue)
			set(tcpQueueSeq, int(int32(sequence)))
		}
		err = errors.Join(err,
			unix.Bind(fd, &unix.SockaddrInet4{Addr: s.local.Addr().As4(), Port: int(s.local.Port())}),
			unix.Connect(fd, &unix.SockaddrInet4{Addr: s.remote.Addr().As4(), Port: int(s.remote.Port())}))
		set(tcpRepair, 0)
		file := os.NewFile(uintptr(fd), "woken")
		defer file.Close()
		if err != nil {
			return nil, err
		}
		return net.FileConn(file)
	})
	if err != nil {
		t.Fatalf("wake a connection: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// pause dials the world from slot, puts the guest's end of the connection to sleep and
// parks the slot. The connection that it returns is the world's end.
func pause(t testing.TB, n *Network, slot Slot, world internet) (sleeper, net.Conn) {
	t.Helper()
	listener := listenIn(t, world.namespace, netip.AddrPortFrom(world.server, 0).String())
	t.Cleanup(func() { _ = listener.Close() })
	guest, err := dialFrom(t, slot.Namespace, "tcp4", netip.MustParseAddrPort(listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peer.Close() })
	if err := n.Hold(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	asleep := sleep(t, guest)
	for range 2 {
		if err := n.Park(t.Context(), slot); err != nil {
			t.Fatal(err)
		}
	}
	if got := traces(t, n, slot); len(got) != 1 || got[0] != "lease" {
		t.Errorf("of a parked slot there are %v, want the lease alone", got)
	}
	return asleep, peer
}

func exchange(t testing.TB, from, to net.Conn, what string) {
	t.Helper()
	if _, err := io.WriteString(from, what); err != nil {
		t.Fatal(err)
	}
	expect(t, to, what)
}

func expect(t testing.TB, conn net.Conn, what string) {
	t.Helper()
	got := make([]byte, len(what))
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != what {
		t.Fatalf("got %q, %v, want %q", got, err, what)
	}
}

// A guest's connection to the world, through the host's address translation, goes on in
// a slot that was parked, also over a start of the agent.
func TestConnectionsOutlastParking(t *testing.T) {
	for name, between := range map[string]func(*testing.T, *Network) *Network{
		"at once": func(_ *testing.T, n *Network) *Network { return n },
		"over a crash": func(t *testing.T, n *Network) *Network {
			crash(n)
			again, err := Open(t.Context(), n.config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = again.Close() })
			return again
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := open(t, newConfig(t))
			slot := mustAcquire(t, n)
			asleep, peer := pause(t, n, slot, newInternet(t))
			again := between(t, n)
			if err := again.Sweep(t.Context(), []int{slot.Index}); err != nil {
				t.Fatal(err)
			}
			// What the peer says meanwhile must not be answered with a reset by anyone.
			if _, err := io.WriteString(peer, "while away"); err != nil {
				t.Fatal(err)
			}
			if err := (talk{Conn: peer}).hears(dropTimeout); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the peer heard %v", err)
			}
			if _, err := again.AcquireSlot(t.Context(), slot.Index); err != nil {
				t.Fatal(err)
			}
			back, err := again.Unpark(t.Context(), slot)
			if err != nil || back != slot {
				t.Fatalf("Unpark: %+v, %v, want %+v", back, err, slot)
			}
			if on, err := again.Held(t.Context(), back); err != nil || !on {
				t.Errorf("Held after Unpark: %t, %v", on, err)
			}
			guest := asleep.wake(t, back.Namespace)
			if err := again.Unhold(t.Context(), back); err != nil {
				t.Fatal(err)
			}
			expect(t, guest, "while away")
			exchange(t, guest, peer, "back again")
			if err := again.Release(t.Context(), back); err != nil {
				t.Fatal(err)
			}
			if got := connections(t, slot.Guest.Addr()); got != 0 {
				t.Errorf("%d connections are left after Release", got)
			}
		})
	}
}

// A slot that another gets while its guest is away brings that one nothing of the old
// guest's, and the old guest nothing of that one's.
func TestParkedSlotThatAnotherTakes(t *testing.T) {
	c := newConfig(t)
	c.Prefix = netip.MustParsePrefix("10.114.251.0/29")
	n := open(t, c)
	mustAcquire(t, n)
	slot := mustAcquire(t, n)
	world := newInternet(t)
	_, peer := pause(t, n, slot, world)
	other := mustAcquire(t, n) // all else is in use
	if other.Index != slot.Index || other.Lease == slot.Lease {
		t.Fatalf("got %+v, want another lease of slot %d", other, slot.Index)
	}
	if got := connections(t, slot.Guest.Addr()); got != 0 {
		t.Errorf("%d connections of the guest that was parked are left", got)
	}
	listened := sniff(t, other)
	if _, err := io.WriteString(peer, "not for you"); err != nil {
		t.Fatal(err)
	}
	// Something that is for it shows that the other guest would have heard.
	greetings := greet(t, listenIn(t, other.Namespace, "0.0.0.0:0"))
	var seen []netip.Addr
	conn, err := net.DialTimeout("tcp4", netip.AddrPortFrom(other.Guest.Addr(), greetings.Port()).String(), dialTimeout)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(dropTimeout); time.Now().Before(end); <-tick.C {
		seen = append(seen, listened(t)...)
	}
	heardHost := false
	for _, source := range seen {
		heardHost = heardHost || source == other.Gateway
		if source == world.server {
			t.Fatal("the other guest got a packet of the old one's peer")
		}
	}
	if !heardHost {
		t.Error("the other guest heard nothing at all, so that the test shows nothing")
	}

	if _, err := n.Unpark(t.Context(), slot); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("Unpark while all slots are in use: %v", err)
	}
	if err := errors.Join(n.Release(t.Context(), slot), n.Park(t.Context(), other)); err != nil {
		t.Fatal(err)
	}
	got, err := n.Unpark(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	if got.Lease == other.Lease || got.Lease == slot.Lease {
		t.Errorf("Unpark of a lease that is gone gave that of %+v", got)
	}
	if on, err := n.Held(t.Context(), got); err != nil || !on {
		t.Errorf("Held: %t, %v", on, err)
	}
}

// sniff returns what tells the sources of the IPv4 packets that have come to the slot.
func sniff(t testing.TB, slot Slot) func(testing.TB) []netip.Addr {
	t.Helper()
	const allPackets = 0x0300 // ETH_P_ALL in network order
	fd, err := inside(t, slot.Namespace, func() (int, error) {
		return unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, allPackets)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func(t testing.TB) []netip.Addr {
		t.Helper()
		var sources []netip.Addr
		packet := make([]byte, 2048)
		for {
			size, _, err := unix.Recvfrom(fd, packet, 0)
			if errors.Is(err, unix.EAGAIN) {
				return sources
			}
			if err != nil {
				t.Fatal(err)
			}
			if size >= sourceOffset+addressLength && packet[0]>>4 == 4 {
				sources = append(sources, netip.AddrFrom4([4]byte(packet[sourceOffset:])))
			}
		}
	}
}

func TestParkedSlotsAreNotAnybodys(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	if err := n.Park(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	for _, call := range []error{
		n.Hold(t.Context(), slot), n.SetRate(t.Context(), slot, 0, 0), n.Adopt(t.Context(), slot),
	} {
		if !fault.Is(call, fault.NotFound) {
			t.Errorf("a parked slot: %v", call)
		}
	}
	other, err := n.AcquireSlot(t.Context(), slot.Index)
	if err != nil || other.Index == slot.Index {
		t.Errorf("AcquireSlot of a parked slot gave %d, %v", other.Index, err)
	}
	if err := errors.Join(n.Release(t.Context(), other), n.Release(t.Context(), slot)); err != nil {
		t.Fatal(err)
	}
	if got := traces(t, n, slot); len(got) > 0 {
		t.Errorf("left are %v", got)
	}
	if got := elements(t, n.firewall); got != 0 {
		t.Errorf("set elements left: %d", got)
	}
}

// An Unpark that fails leaves the slot parked, connections and all.
func TestFailedUnparkLeavesTheSlotParked(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	asleep, peer := pause(t, n, slot, newInternet(t))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Unpark(ended, slot); err == nil {
		t.Fatal("Unpark with an ended context")
	}
	if got := traces(t, n, slot); len(got) != 1 || got[0] != "lease" {
		t.Errorf("of the slot there are %v, want the lease alone", got)
	}
	back, err := n.Unpark(t.Context(), slot)
	if err != nil || back != slot {
		t.Fatalf("Unpark: %+v, %v", back, err)
	}
	guest := asleep.wake(t, back.Namespace)
	if err := n.Unhold(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	exchange(t, guest, peer, "back again")
}

// A program of the host that has taken the slot's address for itself costs the guest its
// connections, and not its life.
func TestUnparkWhereTheAddressIsInUse(t *testing.T) {
	n := open(t, newConfig(t))
	slot := mustAcquire(t, n)
	if err := n.Park(t.Context(), slot); err != nil {
		t.Fatal(err)
	}
	// The address itself goes with the slot; one may listen on it all the same.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(controlErr, err)
	}}
	squatter, err := config.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(slot.Gateway, dnsPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	other, err := n.Unpark(t.Context(), slot)
	if err != nil || other.Index == slot.Index {
		t.Fatalf("Unpark: %+v, %v, want another slot than %d", other, err, slot.Index)
	}
	if on, err := n.Held(t.Context(), other); err != nil || !on {
		t.Errorf("Held: %t, %v", on, err)
	}
	n.retiring.Wait()
	if got := traces(t, n, slot); len(got) > 0 {
		t.Errorf("of the slot that was left %v are there", got)
	}
}
