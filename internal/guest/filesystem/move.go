package filesystem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Move renames source to destination, replacing a file there, and makes the missing
// directories above it. Between file systems, where there is no renaming, it copies all
// that is known about the source and then removes it; the destination still appears as a
// whole or not at all.
func (f *Files) Move(ctx context.Context, source, destination string, owner Owner) (Entry, error) {
	if _, err := os.Lstat(source); err != nil {
		return Entry{}, explain(err, "move", source)
	}
	made, err := makeDirs(filepath.Dir(destination), owner)
	if err != nil {
		return Entry{}, explain(err, "make directories for", destination)
	}
	err = os.Rename(source, destination)
	if errors.Is(err, unix.EXDEV) {
		err = moveAcross(ctx, source, destination)
	}
	if err != nil {
		made.remove()
	}
	switch {
	case errors.Is(err, unix.EINVAL):
		return Entry{}, intoItself(source)
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return Entry{}, fault.New(fault.Conflict, "'%s' exists already and is a directory", destination)
	case errors.Is(err, unix.ENOTDIR):
		return Entry{}, fault.New(fault.Conflict, "'%s' exists already and is not a directory", destination)
	case err != nil:
		return Entry{}, explain(err, "move", source)
	}
	return f.Stat(destination)
}

func intoItself(source string) error {
	return fault.New(fault.InvalidRequest, "'%s' cannot be moved into itself", source)
}

// moveAcross moves source to another file system.
func moveAcross(ctx context.Context, source, destination string) (err error) {
	if _, err := isTree(source); err != nil {
		return err
	}
	// The kernel sees this only within one file system, and a copy would copy itself.
	if into, err := isBelow(filepath.Dir(destination), source); err != nil {
		return err
	} else if into {
		return intoItself(source)
	}
	staging, err := os.MkdirTemp(filepath.Dir(destination), NewFile.prefix()+"*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(staging)) }()
	staged := filepath.Join(staging, "moved")
	if err := copyTree(ctx, source, staged); err != nil {
		return err
	}
	if err := os.Rename(staged, destination); err != nil {
		return err
	}
	if err := removeWhole(source); err != nil {
		err = explain(err, "remove", source)
		return fault.Wrap(err, fault.CodeOf(err), "'%s' was copied to '%s', but not all of it could be removed: %s",
			source, destination, fault.MessageOf(err))
	}
	return nil
}

// isBelow says whether the directory dir is path, or below it, by whatever links.
func isBelow(dir, path string) (bool, error) {
	top, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	dir, err = filepath.EvalSymlinks(dir)
	for err == nil {
		var info os.FileInfo
		if info, err = os.Lstat(dir); err == nil && os.SameFile(info, top) {
			return true, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return false, err
}

// copyTree copies path, whatever it is, with owner, mode, times and extended attributes.
func copyTree(ctx context.Context, from, to string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: the system says nothing about its owner", from)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		err = copyRegular(from, to)
	case mode.IsDir():
		err = copyDirectory(ctx, from, to)
	case mode&os.ModeSymlink != 0:
		var text string
		if text, err = os.Readlink(from); err == nil {
			err = os.Symlink(text, to)
		}
	default: // a device, a pipe or a socket
		err = unix.Mknod(to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	return copyAttributes(from, to, info, st)
}

func copyRegular(from, to string) error {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, newFileMode)
	if err != nil {
		return err
	}
	_, err = Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func copyDirectory(ctx context.Context, from, to string) error {
	if err := os.Mkdir(to, newDirMode); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := copyTree(ctx, filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyAttributes(from, to string, info os.FileInfo, st *syscall.Stat_t) error {
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(from, to, everyXattr); err != nil {
		return err
	}
	if info.Mode()&os.ModeSymlink == 0 {
		// After Lchown, which takes setuid away.
		if err := os.Chmod(to, info.Mode()); err != nil {
			return err
		}
	}
	times := []unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW)
}
