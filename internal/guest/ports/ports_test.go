package ports

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// answer makes ln answer each connection, after its end, with all that came in.
func answer(t *testing.T, ln *net.TCPListener) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				data, err := io.ReadAll(conn)
				if err == nil {
					_, _ = conn.Write(data)
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
}

func TestLoopbackServersAreReachable(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "127.0.1.1:0"} {
		t.Run(address, func(t *testing.T) {
			s := newSubsystem(t, 0)
			start(t, s)
			ln := listen(t, address)
			answer(t, ln)
			conn := reach(t, outside(portOf(ln)))
			sent := make([]byte, 3<<20)
			_, _ = rand.Read(sent)
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			// The answer only begins at the end of the question, so it comes only if half
			// a connection can end.
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes come back: %v", len(got), len(sent), err)
			}
		})
	}
}

// Who is told of a port can use it at once.
func TestWhatIsListedIsReachable(t *testing.T) {
	s := newSubsystem(t, 0)
	start(t, s)
	for range 5 {
		ln := listen(t, "127.0.0.1:0")
		answer(t, ln)
		list, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(list, func(p Port) bool { return p.Port == portOf(ln) })
		if at < 0 || !list[at].Forwarded {
			t.Fatalf("port %d is not forwarded in %+v", portOf(ln), list)
		}
		conn, err := dial(t, outside(portOf(ln)))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

func TestResetIsPassedOn(t *testing.T) {
	s := newSubsystem(t, 0)
	start(t, s)
	ln := listen(t, "127.0.0.1:0")
	go func() {
		for {
			conn, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 1))
			_, _ = conn.Write([]byte("half an ans"))
			reset(conn)
		}
	}()
	conn := reach(t, outside(portOf(ln)))
	if _, err := conn.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	ln.Close()
}

func TestWhatIsNotForwarded(t *testing.T) {
	own, everywhere, both, plain := listen(t, "127.0.0.1:0"), listen(t, "0.0.0.0:0"), listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	bothOutside := listen(t, outside(portOf(both)))
	s := newSubsystem(t, portOf(own))
	start(t, s)
	reach(t, outside(portOf(plain)))

	if conn, err := dial(t, outside(portOf(own))); err == nil {
		conn.Close()
		t.Error("the daemon's own port is forwarded")
	}
	list := listed(t, s)
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		if list[i].Process != strings.TrimSpace(string(name)) || list[i].PID != os.Getpid() {
			t.Errorf("%+v belongs to another process", list[i])
		}
		list[i].PID, list[i].Process = 0, ""
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	want := []Port{
		{Port: portOf(everywhere), Address: netip.IPv4Unspecified(), Protocol: "tcp"},
		{Port: portOf(both), Address: loopback, Protocol: "tcp"},
		{Port: portOf(bothOutside), Address: netip.MustParseAddr(outsideAddress), Protocol: "tcp"},
		{Port: portOf(plain), Address: loopback, Protocol: "tcp", Forwarded: true},
	}
	slices.SortStableFunc(want, func(a, b Port) int {
		if a.Port != b.Port {
			return int(a.Port) - int(b.Port)
		}
		return a.Address.Compare(b.Address)
	})
	if !slices.Equal(list, want) {
		t.Errorf("ports\n%+v, want\n%+v", list, want)
	}
}

func TestWithoutInterfaceNothingIsForwarded(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	s := New(Config{Logger: quiet()})
	defer s.Stop()
	changes, unsubscribe := s.Subscribe()
	defer unsubscribe()
	start(t, s)
	<-changes // it has looked
	if conn, err := dial(t, outside(portOf(ln))); err == nil {
		conn.Close()
		t.Error("a port is forwarded")
	}
	if list := listed(t, s); len(list) != 1 || list[0].Forwarded {
		t.Errorf("%+v", list)
	}
}

// A server that goes from loopback to all addresses must get its port.
func TestPortIsGivenBack(t *testing.T) {
	s := newSubsystem(t, 0)
	start(t, s)
	ln := listen(t, "127.0.0.1:0")
	port := portOf(ln)
	old := reach(t, outside(port))
	server, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ln.Close()
	address := netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()
	eventually(t, "listen on "+address, func() bool {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		if err == nil {
			ln.Close()
		}
		return err == nil
	})
	// A server that takes no more connections may still answer those that it has.
	if _, err := server.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if got, err := io.ReadAll(old); err != nil || string(got) != "still here" {
		t.Errorf("%q, %v", got, err)
	}
}

// helper starts a process that listens, and returns it when it does.
func helper(t *testing.T, address string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{asServer + "=" + address}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestEndOfServerIsSeenAtOnce(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	address := ln.Addr().String()
	ln.Close()
	s := newSubsystem(t, 0)
	cmd := helper(t, address)

	ended := make(chan bool, 2)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- awaitEnd(t.Context(), cmd.Process.Pid) }()
	go func() { ended <- awaitEnd(ctx, cmd.Process.Pid) }()
	cancel()
	if <-ended {
		t.Error("the process is said to have ended while it runs")
	}
	start(t, s)
	target := netip.MustParseAddrPort(address)
	reach(t, outside(target.Port()))
	if list := listed(t, s); len(list) != 1 || list[0].PID != cmd.Process.Pid || !list[0].Forwarded {
		t.Errorf("%+v; want process %d", list, cmd.Process.Pid)
	}
	began := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !<-ended {
		t.Error("the end of the process was not seen")
	}
	eventually(t, "the port is free again", func() bool {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), target.Port()).String())
		if err == nil {
			ln.Close()
		}
		return err == nil
	})
	t.Logf("free %v after the kill", time.Since(began))
}

func TestStopCutsConnections(t *testing.T) {
	s := newSubsystem(t, 0)
	start(t, s)
	ln := listen(t, "127.0.0.1:0")
	answer(t, ln)
	conn := reach(t, outside(portOf(ln)))
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	if conn, err := dial(t, outside(portOf(ln))); err == nil {
		conn.Close()
		t.Error("the port is still open outside")
	}
	if list := listed(t, s); len(list) != 1 || list[0].Forwarded {
		t.Errorf("while stopped: %+v", list)
	}
	s.Stop()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	reach(t, outside(portOf(ln)))
}

func TestEndsWithItsContext(t *testing.T) {
	s := newSubsystem(t, 0)
	ln := listen(t, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	reach(t, outside(portOf(ln)))
	cancel()
	eventually(t, "the port is closed outside", func() bool {
		conn, err := dial(t, outside(portOf(ln)))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	start(t, s)
	reach(t, outside(portOf(ln)))
}

func TestSubscribersHoldNobodyUp(t *testing.T) {
	s := newSubsystem(t, 0)
	_, unsubscribe := s.Subscribe() // never looked at
	defer unsubscribe()
	changes, stop := s.Subscribe()
	start(t, s)
	wait := func(what string) {
		t.Helper()
		select {
		case <-changes:
		case <-time.After(patience):
			t.Fatalf("no signal of %s", what)
		}
	}
	first := listen(t, "127.0.0.1:0")
	wait("a new port")
	reach(t, outside(portOf(first)))
	first.Close()
	wait("a port that is gone")
	stop()
	stop()
	s.signals.tell()
	select {
	case <-changes:
		t.Error("a signal after the end of the subscription")
	default:
	}
}

func TestStress(t *testing.T) {
	s := newSubsystem(t, 0)
	ln := listen(t, "127.0.0.1:0")
	answer(t, ln)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, do := range []func(){
		func() { _ = s.Start(t.Context()) },
		func() { _ = s.Restart(t.Context()) },
		func() { s.Stop() },
		func() { _, _ = s.List(ctx) },
		func() {
			_, stop := s.Subscribe()
			stop()
		},
		func() {
			if conn, err := dial(t, outside(portOf(ln))); err == nil {
				_, _ = conn.Write(make([]byte, 1<<20))
				conn.Close()
			}
		},
	} {
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					do()
				}
			})
		}
	}
	wg.Wait()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn := reach(t, outside(portOf(ln)))
	_, _ = conn.Write([]byte("alive"))
	_ = conn.CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "alive" {
		t.Errorf("%q, %v", got, err)
	}
}
