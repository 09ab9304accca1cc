package ports

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// limited returns a subsystem that runs with other limits.
func limited(t *testing.T, l limits) *PortSubsystem {
	t.Helper()
	s := newSubsystem(t, 0)
	s.limits = l
	start(t, s)
	return s
}

// forwarded returns a server on loopback once it is reachable from outside.
func forwarded(t *testing.T, s *PortSubsystem) *net.TCPListener {
	t.Helper()
	ln := listen(t, "127.0.0.1:0")
	if _, err := s.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	return ln
}

// relayed is one connection that is forwarded.
type relayed struct{ client, server *net.TCPConn }

func connect(t *testing.T, ln *net.TCPListener) relayed {
	t.Helper()
	client := reach(t, outside(portOf(ln)))
	if err := ln.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	server, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	if err := server.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return relayed{client, server}
}

// say sends something through and waits until it has come.
func say(t *testing.T, from, to *net.TCPConn) {
	t.Helper()
	got := make([]byte, 1)
	_, wrote := from.Write([]byte("!"))
	if _, err := io.ReadFull(to, got); wrote != nil || err != nil || got[0] != '!' {
		t.Fatalf("%q, %v, %v", got, wrote, err)
	}
}

// abandon is what the other end sees of a client that goes: the end of what it sends. It
// returns when the server has heard of it.
func (r relayed) abandon(t *testing.T) {
	t.Helper()
	if err := r.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.server.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("the server sees %v", err)
	}
}

// wantReset waits until a connection is cut.
func wantReset(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
}

// wantCut waits until the server of an abandoned connection has heard of its end.
func (r relayed) wantCut(t *testing.T) {
	t.Helper()
	eventually(t, "the server's side is cut", func() bool {
		_, err := r.server.Write([]byte("?"))
		return err != nil
	})
}

// A server that answers nobody, and whose clients have all gone, is to stay reachable.
func TestAbandonedConnectionsGiveWay(t *testing.T) {
	s := limited(t, limits{all: 3, port: 2, halfOpen: time.Hour, idle: time.Hour})
	mute, other := forwarded(t, s), forwarded(t, s)
	busy, gone := connect(t, mute), connect(t, mute)
	busy.abandon(t)
	gone.abandon(t)
	say(t, busy.server, busy.client) // it was silent for longer until now
	next := connect(t, mute)
	wantReset(t, gone.client)
	gone.wantCut(t)
	say(t, next.client, next.server)
	say(t, next.server, next.client)
	say(t, busy.server, busy.client)

	// All places are taken, but one by a connection that may go, be it of another port.
	first := connect(t, other)
	second := connect(t, other)
	wantReset(t, busy.client)
	for _, r := range []relayed{next, first, second} {
		say(t, r.client, r.server)
		say(t, r.server, r.client)
	}
	// Those that gave way give nothing back a second time.
	busy.wantCut(t)
	for _, ln := range []*net.TCPListener{mute, other} {
		wantReset(t, reach(t, outside(portOf(ln))))
	}
}

func TestOnePortHasOnlyItsShare(t *testing.T) {
	if usualLimits.port > usualLimits.all/2 {
		t.Errorf("one port may take %d of %d places", usualLimits.port, usualLimits.all)
	}
	s := limited(t, limits{all: 3, port: 2, halfOpen: time.Hour, scarce: time.Hour, idle: time.Hour})
	mute, other := forwarded(t, s), forwarded(t, s)
	first := connect(t, mute)
	connect(t, mute).abandon(t) // too short a time ago to give way
	wantReset(t, reach(t, outside(portOf(mute))))
	last := connect(t, other)
	say(t, last.client, last.server)
	wantReset(t, reach(t, outside(portOf(other))))

	first.client.Close()
	first.server.Close()
	eventually(t, "a place that was given back is there for others", func() bool {
		reach(t, outside(portOf(other)))
		if err := other.SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		server, err := other.AcceptTCP()
		if err == nil {
			server.Close()
		}
		return err == nil
	})
}

func TestHalfOpenSilenceIsBounded(t *testing.T) {
	s := limited(t, limits{all: 3, port: 3, halfOpen: 1})
	ln := forwarded(t, s)
	whole, gone := connect(t, ln), connect(t, ln)
	gone.abandon(t)
	eventually(t, "what is half-open is cut", func() bool {
		if _, err := s.List(t.Context()); err != nil { // looks at once
			t.Fatal(err)
		}
		if err := gone.client.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := gone.client.Read(make([]byte, 1))
		return errors.Is(err, syscall.ECONNRESET)
	})
	gone.wantCut(t)
	say(t, whole.client, whole.server)
	say(t, whole.server, whole.client)
}

// Connections that nobody uses, though neither side has closed them, keep nobody out for ever;
// those that are used stay.
func TestSilentConnectionsGiveWay(t *testing.T) {
	s := limited(t, limits{all: 4, port: 2, halfOpen: time.Hour, idle: 1})
	ln := forwarded(t, s)
	silent, busy := connect(t, ln), connect(t, ln)
	// A server has a connection a moment before it counts as whole, and silence from there on.
	eventually(t, "both are carried, both ways", func() bool {
		stacks := make([]byte, 1<<20)
		return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte("(*relay).pass(")) == 4
	})
	exchange := func(r relayed) {
		t.Helper()
		say(t, r.client, r.server)
		say(t, r.server, r.client)
	}
	exchange(busy)
	if _, err := s.List(t.Context()); err != nil { // takes a sample
		t.Fatal(err)
	}
	for range 2 {
		exchange(busy) // the second passes when the sample was taken, which the first may not
	}
	next := connect(t, ln)
	wantReset(t, silent.client)
	wantReset(t, silent.server)
	for range 2 {
		exchange(busy)
		exchange(next)
	}
	other := forwarded(t, s)
	exchange(connect(t, other))
	exchange(busy)
}

// A sample loses nothing of what passes while it is taken.
func TestSamplesLoseNothing(t *testing.T) {
	s := limited(t, limits{all: 2, port: 2, halfOpen: time.Hour, idle: time.Hour})
	r := connect(t, forwarded(t, s))
	const size = 64 << 20
	wrote := make(chan error, 1)
	go func() {
		piece := make([]byte, 1<<20)
		for at := 0; at < size; at += len(piece) {
			for i := range piece {
				piece[i] = byte((at + i) % 251)
			}
			if _, err := r.client.Write(piece); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- r.client.CloseWrite()
	}()
	samples := make(chan error, 1)
	over := make(chan struct{})
	go func() {
		var err error
		for err == nil {
			select {
			case <-over:
				samples <- nil
				return
			default:
				_, err = s.List(t.Context())
			}
		}
		samples <- err
	}()
	got, buf := 0, make([]byte, 1<<20)
	for {
		n, err := r.server.Read(buf)
		for i, b := range buf[:n] {
			if b != byte((got+i)%251) {
				t.Fatalf("byte %d is %d", got+i, b)
			}
		}
		got += n
		if err != nil {
			if !errors.Is(err, io.EOF) || got != size {
				t.Errorf("%d of %d bytes, %v", got, size, err)
			}
			break
		}
	}
	close(over)
	if err := errors.Join(<-wrote, <-samples); err != nil {
		t.Error(err)
	}
	say(t, r.server, r.client)
}
