package gvisor

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// tunUser holds a tun device until somebody who is connected says something.
const tunUser = `
import fcntl, os, socket, struct, time
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack("16sH", b"tun0", 0x1001))
peer, _ = socket.create_server(("0.0.0.0", 8000)).accept()
peer.recv(1)
os.close(tun)
peer.send(b"x")
time.sleep(3600)
`

// gVisor cannot write a tun device down. That is no fault of the server, and whoever asked
// is told what to do about it.
func TestCheckpointTellsWhatItCannotWrite(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.sleeper(t, "tunnel", slot)
	spec.Args = []string{"/usr/bin/python3", "-c", tunUser}
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	guest := dialSoon(t, netip.AddrPortFrom(slot.Guest.Addr(), 8000))
	err := p.driver.Checkpoint(t.Context(), spec.ID, t.TempDir())
	var told *fault.Error
	if !errors.As(err, &told) || told.Code() != fault.InvalidState || !strings.Contains(told.Message(), "/dev/net/tun") ||
		strings.Contains(told.Message(), "goroutine") {
		t.Errorf("a checkpoint with a tun device: %v", err)
	}
	// It goes on, and can be written down once the device is gone.
	if _, err := guest.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Checkpoint(t.Context(), spec.ID, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// dialSoon connects to a server that is about to listen.
func dialSoon(t *testing.T, address netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address.String())
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			return conn
		}
		select {
		case <-ctx.Done():
			t.Fatalf("nobody listens: %v", err)
		case <-tick.C:
		}
	}
}

// stopsItself is a guest all of which is stopped as soon as somebody connects.
const stopsItself = `
import os, signal, socket
peer, _ = socket.create_server(("0.0.0.0", 8000)).accept()
os.kill(os.getpid(), signal.SIGSTOP)
`

// A guest whose only process is stopped cannot answer, but its runtime does, and it can be
// written down and restored.
func TestStoppedGuestIsWrittenDown(t *testing.T) {
	p := newPlace(t)
	slot := p.slot(t)
	spec := p.sleeper(t, "stopped", slot)
	spec.Args = []string{"/usr/bin/python3", "-c", stopsItself}
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	dialSoon(t, netip.AddrPortFrom(slot.Guest.Addr(), 8000))
	if err := p.driver.Answers(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	// It looks frozen and is not: one thaw too many would end it.
	thaws := func() {
		t.Helper()
		if err := p.driver.Thaw(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
		if err := p.driver.Answers(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
	}
	thaws()
	dir := t.TempDir()
	if err := p.driver.Checkpoint(t.Context(), spec.ID, dir); err != nil {
		t.Fatal(err)
	}
	thaws()
	thaws()
	if err := p.driver.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	if err := p.driver.Answers(t.Context(), spec.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("a runtime that has ended: %v", err)
	}
	p.renew(t, slot.Namespace)
	spec.Checkpoint = dir
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Error(err)
	}
}

// What of a checkpoint is read to prepare the restore may be damaged as the rest may; then
// too the caller, who looks at everything, says what is wrong.
func TestDamagedDescription(t *testing.T) {
	p := newPlace(t)
	spec := p.sleeper(t, "described", p.slot(t))
	if err := p.driver.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := p.driver.Checkpoint(t.Context(), spec.ID, dir); err != nil {
		t.Fatal(err)
	}
	from, err := readOrigin(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		damage func(whole []byte) []byte
		says   error // without the caller
	}{
		{configFile, func(whole []byte) []byte { return whole[:len(whole)/2] }, errDamaged},
		{originFile, func(whole []byte) []byte { return whole[:len(whole)/2] }, errDamaged},
		// Another program, which is not there.
		{originFile, func(whole []byte) []byte {
			return bytes.Replace(whole, []byte(from.Program), []byte(strings.Repeat("0", len(from.Program))), 1)
		}, fs.ErrNotExist},
	} {
		file := filepath.Join(dir, c.name)
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, c.damage(whole), stateMode); err != nil {
			t.Fatal(err)
		}
		again := p.sleeper(t, "again", p.slot(t))
		again.Checkpoint = dir
		if err := p.driver.Start(t.Context(), again); !errors.Is(err, c.says) {
			t.Errorf("%s is damaged: %v", c.name, err)
		}
		found := errors.New("the caller's finding")
		again.BeforeRestore = func(context.Context) error { return found }
		if err := p.driver.Start(t.Context(), again); !errors.Is(err, found) {
			t.Errorf("%s is damaged, and the caller knows: %v", c.name, err)
		}
		if err := os.WriteFile(file, whole, stateMode); err != nil {
			t.Fatal(err)
		}
	}
}
