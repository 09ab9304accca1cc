package child

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigchldPID returns the pid in a siginfo_t that waitid filled: the four bytes after the
// three int32 of the head and, on 64-bit machines, their padding (see sigaction(2)).
// It is 0 when no child was found.
func sigchldPID(info *unix.Siginfo) int {
	const offset = 16
	raw := (*[unsafe.Sizeof(*info)]byte)(unsafe.Pointer(info))
	return int(int32(binary.NativeEndian.Uint32(raw[offset:])))
}
