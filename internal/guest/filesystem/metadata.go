package filesystem

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// metadataPrefix begins the names of the extended attributes that keep what clients note
// down about a file. What others put there counts as well.
const metadataPrefix = "user.e2b."

// Bounds of metadata, in bytes: of a key, so that the attribute's name is not longer than
// Linux allows, and of all keys, values and prefixes, so that ext4 has room for them.
const (
	maxMetadataKey = maxName - len(metadataPrefix)
	maxMetadata    = 4096
)

// CheckMetadata says what of metadata cannot be kept.
func CheckMetadata(metadata map[string]string) error {
	total := 0
	for key, value := range metadata {
		switch {
		case key == "":
			return fault.New(fault.InvalidRequest, "a metadata key is empty")
		case len(key) > maxMetadataKey:
			return fault.New(fault.InvalidRequest, "the metadata key '%.32s…' has %d bytes of at most %d", key, len(key), maxMetadataKey)
		case !printable(key) || !printable(value):
			return fault.New(fault.InvalidRequest, "metadata %q is not printable ASCII; encode its key and value", key)
		}
		total += len(metadataPrefix) + len(key) + len(value)
	}
	if total > maxMetadata {
		return fault.New(fault.InvalidRequest, "the metadata has %d bytes of at most %d, keys, values and %d for each pair counted",
			total, maxMetadata, len(metadataPrefix))
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// SetMetadata says what is to be kept about the file, and whether its file system can: if
// it cannot the file is written without.
func (r *Replacement) SetMetadata(metadata map[string]string) (kept bool, err error) {
	if err := CheckMetadata(metadata); err != nil {
		return false, err
	}
	for key, value := range metadata {
		err := unix.Fsetxattr(int(r.temp.Fd()), metadataPrefix+key, []byte(value), 0)
		switch {
		case errors.Is(err, unix.ENOTSUP):
			return false, nil
		case err != nil:
			return false, explain(&os.PathError{Op: "fsetxattr", Path: r.path, Err: err}, "keep metadata of", r.path)
		}
	}
	return true, nil
}

// metadata returns what is kept about path, nil when nothing is.
func metadata(path string) map[string]string {
	var found map[string]string
	for _, name := range listXattrs(path, unix.Listxattr) {
		key, ours := strings.CutPrefix(name, metadataPrefix)
		if !ours || key == "" {
			continue
		}
		value, ok := readXattr(path, name, unix.Getxattr)
		if !ok {
			continue // gone meanwhile
		}
		if found == nil {
			found = make(map[string]string)
		}
		found[key] = value
	}
	return found
}

// Limits of extended attributes, in bytes: of Linux (limits.h) for a list of names and for
// a value, and what is enough for nearly every file.
const (
	maxXattr   = 64 << 10
	usualXattr = 1 << 10
)

// xattrBuffers are used again: a listing looks at the attributes of every entry.
var xattrBuffers = sync.Pool{New: func() any { return new([maxXattr]byte) }}

// withXattr calls read with a buffer that is large enough, and returns what was read.
func withXattr(read func(dest []byte) (int, error)) (string, bool) {
	buf := xattrBuffers.Get().(*[maxXattr]byte)
	defer xattrBuffers.Put(buf)
	n, err := read(buf[:usualXattr])
	if errors.Is(err, unix.ERANGE) {
		n, err = read(buf[:])
	}
	if err != nil {
		return "", false
	}
	return string(buf[:n]), true
}

func readXattr(path, name string, get func(path, name string, dest []byte) (int, error)) (string, bool) {
	return withXattr(func(dest []byte) (int, error) { return get(path, name, dest) })
}

// listXattrs returns the names of path's extended attributes as far as it can.
func listXattrs(path string, list func(path string, dest []byte) (int, error)) []string {
	names, _ := withXattr(func(dest []byte) (int, error) { return list(path, dest) })
	if names == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(names, "\x00"), "\x00")
}

// copyXattrs copies those extended attributes of a file that are wanted, as far as the
// other file's file system takes them.
func copyXattrs(from, to string, wanted func(name string) bool) error {
	for _, name := range listXattrs(from, unix.Llistxattr) {
		if !wanted(name) {
			continue
		}
		value, ok := readXattr(from, name, unix.Lgetxattr)
		if !ok {
			continue // gone, or not to be read
		}
		err := unix.Lsetxattr(to, name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: attribute %s: %w", to, name, err)
		}
	}
	return nil
}

func everyXattr(string) bool { return true }

// lastingXattr says whether an attribute of a file outlives the change of its content, as
// notes and access lists do. Metadata is about the content, and what the system derives
// from it (capabilities, signatures) must not outlive it.
func lastingXattr(name string) bool {
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, metadataPrefix) ||
		strings.HasPrefix(name, "system.posix_acl_")
}
