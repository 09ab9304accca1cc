package filesystem

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

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
		value := make([]byte, maxXattrValue)
		n, err := unix.Getxattr(path, name, value)
		if err != nil {
			continue // gone meanwhile
		}
		if found == nil {
			found = make(map[string]string)
		}
		found[key] = string(value[:n])
	}
	return found
}

// Limits of Linux on extended attributes, in bytes (limits.h).
const (
	maxXattrList  = 64 << 10
	maxXattrValue = 64 << 10
)

// usualXattrList is room enough for the names of nearly every file, in bytes.
const usualXattrList = 1 << 10

// listXattrs returns the names of path's extended attributes as far as it can.
func listXattrs(path string, list func(path string, dest []byte) (int, error)) []string {
	buf := make([]byte, usualXattrList)
	n, err := list(path, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, maxXattrList)
		n, err = list(path, buf)
	}
	if err != nil || n == 0 {
		return nil
	}
	var names []string
	for name := range bytes.SplitSeq(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		names = append(names, string(name))
	}
	return names
}

// copyXattrs copies those extended attributes of a file that are wanted, as far as the
// other file's file system takes them.
func copyXattrs(from, to string, wanted func(name string) bool) error {
	for _, name := range listXattrs(from, unix.Llistxattr) {
		if !wanted(name) {
			continue
		}
		value := make([]byte, maxXattrValue)
		n, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			continue // gone, or not to be read
		}
		err = unix.Lsetxattr(to, name, value[:n], 0)
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
