package main

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An address is waited for while somebody who is about to end still has it.
func TestListenWaitsForABusyAddress(t *testing.T) {
	first, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := first.Addr().String()
	if _, err := listen(t.Context(), address, 2*busyRetry); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("beside another: %v", err)
	}
	timer := time.AfterFunc(4*busyRetry, func() { _ = first.Close() })
	defer timer.Stop()
	second, err := listen(t.Context(), address, busyTime)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	began := time.Now()
	if _, err := listen(t.Context(), "127.0.0.1:nonsense", busyTime); err == nil || time.Since(began) > busyTime/2 {
		t.Errorf("what will never work: %v after %v", err, time.Since(began))
	}
}

func TestTheDataDirectoryIsWaitedFor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(4*busyRetry, func() { _ = first.Close() })
	defer timer.Stop()
	second, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
