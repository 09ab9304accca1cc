package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Numbers of the FUSE protocol, of linux/fuse.h.
const (
	fuseForget  = 2
	fuseGetattr = 3
	fuseStatfs  = 17
	fuseInit    = 26
	fuseReaddir = 28

	fuseHead    = 40 // bytes of a request's head
	fuseMaxRead = 256 << 10
)

// mountRemote mounts a file system of the kind that network mounts have: an empty directory,
// which this process serves.
func mountRemote(t *testing.T) string {
	t.Helper()
	var kernel unix.Utsname
	must(t, unix.Uname(&kernel))
	if strings.HasSuffix(unix.ByteSliceToString(kernel.Release[:]), "-gvisor") {
		t.Skip("gVisor waits for ever for such a file system that is of the same process")
	}
	dir := t.TempDir()
	// Waiting for it in any way but by reading it is not possible before it is mounted.
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		t.Skip("this kernel has no such file system")
	}
	must(t, err)
	served := make(chan struct{})
	err = unix.Mount("wrenn", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device))
	if errors.Is(err, unix.ENODEV) {
		_ = unix.Close(device)
		t.Skip("this kernel has no such file system")
	}
	must(t, err)
	go func() {
		defer close(served)
		serveEmpty(device)
	}()
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
		<-served
		_ = unix.Close(device)
	})
	return dir
}

// serveEmpty answers for an empty directory until that is unmounted.
func serveEmpty(device int) {
	buf := make([]byte, fuseMaxRead)
	order := binary.NativeEndian
	for {
		n, err := unix.Read(device, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n < fuseHead {
			return
		}
		var answer []byte
		failure := syscall.Errno(0)
		switch order.Uint32(buf[4:]) {
		case fuseForget:
			continue
		case fuseInit: // version 7.31
			answer = make([]byte, 64)
			order.PutUint32(answer[0:], 7)
			order.PutUint32(answer[4:], 31)
		case fuseGetattr:
			answer = make([]byte, 16+88)
			order.PutUint64(answer[16:], 1)                     // number
			order.PutUint32(answer[16+60:], unix.S_IFDIR|0o755) // mode
			order.PutUint32(answer[16+64:], 2)                  // links
		case fuseStatfs:
			answer = make([]byte, 80)
		case fuseReaddir:
		default:
			failure = unix.ENOSYS
		}
		out := order.AppendUint32(nil, uint32(16+len(answer)))
		out = order.AppendUint32(out, uint32(-int32(failure)))
		out = append(append(out, buf[8:16]...), answer...)
		if _, err := unix.Write(device, out); err != nil && !errors.Is(err, unix.ENOENT) { // whom nobody waits for any more
			return
		}
	}
}

func TestNetworkMountsAreRefusedUnlessAllowed(t *testing.T) {
	dir := mountRemote(t)
	_, err := Open(t.Context(), dir, Options{})
	wantCode(t, err, fault.InvalidRequest, "is on a network file system")
	for _, recursive := range []bool{false, true} {
		w, err := Open(t.Context(), dir, Options{NetworkMounts: true, Recursive: recursive})
		if err != nil {
			t.Errorf("recursive %v: %v", recursive, err)
			continue
		}
		w.Close()
	}
}
