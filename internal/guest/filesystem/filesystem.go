// Package filesystem reads and changes the files of a sandbox on behalf of its users:
// what is where, moving and removing, and contents, which are replaced as a whole so that
// no reader ever sees half a file.
//
// The daemon's own rights do the work; what is made belongs to the user it is made for. The
// package must not know who asks or over which protocol; paths come to it absolute and
// clean, from Resolve.
package filesystem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Owner is the account that new files and directories belong to.
type Owner struct{ UID, GID uint32 }

// Names gives the names of accounts.
type Names interface {
	UserName(uid uint32) string
	GroupName(gid uint32) string
}

// Files gives access to the file system. It holds no state beside what it was made with,
// and is safe for concurrent use.
type Files struct{ names Names }

// New returns a Files that names owners by names.
func New(names Names) *Files { return &Files{names: names} }

// Modes of what is made here, before a caller asks otherwise.
const (
	newFileMode = 0o644
	newDirMode  = 0o755
)

// MakeDir makes a directory and the missing ones above it.
func (f *Files) MakeDir(path string, owner Owner) (Entry, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return Entry{}, fault.New(fault.Conflict, "directory already exists: '%s'", path)
	case err == nil:
		return Entry{}, fault.New(fault.InvalidRequest, "path '%s' exists and is not a directory", path)
	}
	if _, err := makeDirs(path, owner); err != nil {
		return Entry{}, explain(err, "make directory", path)
	}
	return f.Stat(path)
}

// madeDirs are directories that were made, each below the one before.
type madeDirs []string

// remove removes them again, but for those that somebody has used since.
func (m madeDirs) remove() {
	for _, dir := range slices.Backward(m) {
		if unix.Rmdir(dir) != nil {
			return
		}
	}
}

// makeDirs makes path and the missing directories above it, each owned by owner, and returns
// those. When it fails it leaves none.
func makeDirs(path string, owner Owner) (made madeDirs, err error) {
	err = os.Mkdir(path, newDirMode)
	switch {
	case errors.Is(err, os.ErrExist):
		info, statErr := os.Stat(path)
		if statErr != nil {
			return nil, statErr
		}
		if !info.IsDir() {
			return nil, &os.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
		}
		return nil, nil
	case errors.Is(err, os.ErrNotExist) && path != filepath.Dir(path):
		if made, err = makeDirs(filepath.Dir(path), owner); err != nil {
			return nil, err
		}
		if err = os.Mkdir(path, newDirMode); errors.Is(err, os.ErrExist) {
			return made, nil // somebody else was quicker
		}
	}
	if err == nil {
		made = append(made, path)
		err = os.Lchown(path, int(owner.UID), int(owner.GID))
	}
	if err != nil {
		made.remove()
		return nil, err
	}
	return made, nil
}

// Remove removes path and everything below it. What is not there is removed already.
func (f *Files) Remove(path string) error {
	if err := removeWhole(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return explain(err, "remove", path)
	}
	return nil
}

// removeWhole removes a directory with all below it, and of anything else the name.
func removeWhole(path string) error {
	tree, err := isTree(path)
	switch {
	case err != nil:
		return err
	case tree:
		return os.RemoveAll(path)
	}
	return os.Remove(path)
}

// isTree reports whether path is to be removed with all below it: whether it is itself a
// directory. Of anything else only the name goes: os.RemoveAll descends where unlink is
// refused and opening follows, and the links of /proc lead to whole file systems.
func isTree(path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	root, err := os.Lstat("/")
	if err != nil {
		return false, err
	}
	if os.SameFile(info, root) {
		return false, fault.New(fault.InvalidRequest, "the root directory cannot be removed")
	}
	return info.IsDir(), nil
}

// actionRead is the action of explain that leaves all as it is.
const actionRead = "read"

// rootOf returns what the system said, without the path.
func rootOf(err error) error {
	var number unix.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}

// explain turns an error of the system into one that a user can act on.
func explain(err error, action, path string) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	is := func(codes ...unix.Errno) bool {
		for _, code := range codes {
			if errors.Is(err, code) {
				return true
			}
		}
		return false
	}
	wrap := func(code fault.Code, format string, args ...any) error {
		return fault.Wrap(fmt.Errorf("%s: %w", action, err), code, format, args...)
	}
	switch {
	case is(unix.ENOENT):
		return wrap(fault.NotFound, "path '%s' does not exist", path)
	case is(unix.ENOTDIR):
		return wrap(fault.InvalidRequest, "a part of path '%s' is not a directory", path)
	case is(unix.EISDIR):
		return wrap(fault.InvalidRequest, "path '%s' is a directory", path)
	case is(unix.ENAMETOOLONG):
		return wrap(fault.InvalidRequest, "path '%s' is too long", path)
	case is(unix.ELOOP):
		return wrap(fault.InvalidRequest, "path '%s' goes through too many symbolic links, perhaps in a circle", path)
	case is(unix.ENOSPC, unix.EDQUOT):
		return wrap(fault.NoSpace, "there is not enough disk space left in the sandbox for '%s'; remove some files", path)
	case is(unix.EMFILE, unix.ENFILE):
		return wrap(fault.RateLimited, "too many files are open in the sandbox to %s '%s'; close some and try again", action, path)
	case is(unix.EACCES, unix.EPERM):
		return wrap(fault.Forbidden, "the system does not permit to %s '%s'", action, path)
	case is(unix.EROFS):
		return wrap(fault.InvalidState, "'%s' is on a read-only file system", path)
	case is(unix.EBUSY, unix.ETXTBSY):
		return wrap(fault.InvalidState, "'%s' is in use by the system, perhaps as a mount point", path)
	case is(unix.ENOTEMPTY, unix.EEXIST):
		return wrap(fault.Conflict, "'%s' exists already and is not empty", path)
	case action == actionRead && is(unix.EIO, unix.ENXIO, unix.ENODEV, unix.ESRCH, unix.EFAULT, unix.EOVERFLOW, unix.EOPNOTSUPP, unix.ENOSYS):
		// As for many of the kernel's files, where a reader asks for what is not there.
		return wrap(fault.InvalidRequest, "path '%s' cannot be read as a file: %v", path, rootOf(err))
	case is(unix.EINVAL):
		return wrap(fault.InvalidRequest, "it is not possible to %s '%s'", action, path)
	}
	return wrap(fault.Internal, "could not %s '%s'", action, path)
}
