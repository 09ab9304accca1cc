package filesystem

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// CopyBuffer is the size, in bytes, of the pieces that contents are copied in. Each piece
// is a system call, which costs much more in a sandbox than on a bare machine: measured in
// gVisor, pieces of 32 KiB reach 0.4 GB/s and these more than 1.1 GB/s.
const CopyBuffer = 1 << 20

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, CopyBuffer); return &b }}

// Copy copies from src to dst in pieces of CopyBuffer until src ends. Unlike io.Copy it
// fills a piece before it writes it, and never hands the copying to dst or src.
func Copy(dst io.Writer, src io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	var total int64
	for {
		n, readErr := fill(src, *buf)
		if n > 0 {
			written, err := dst.Write((*buf)[:n])
			total += int64(written)
			if err != nil {
				return total, err
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return total, nil
		case readErr != nil:
			return total, readErr
		}
	}
}

// fill reads until buf is full or src fails. Unlike io.ReadFull it returns src's own error,
// so that the end of src and src being cut off stay two things.
func fill(src io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = src.Read(buf[n:])
		n += m
	}
	return n, err
}

// Open opens the regular file path for reading, following links. It never waits, as
// opening a named pipe would.
func Open(path string) (*os.File, os.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, explain(err, actionRead, path)
	}
	if err := wantRegular(path, info); err != nil {
		return nil, nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, explain(err, actionRead, path)
	}
	// It may have become something else since.
	if info, err = file.Stat(); err == nil {
		err = wantRegular(path, info)
	}
	if err != nil {
		_ = file.Close()
		return nil, nil, explain(err, actionRead, path)
	}
	return file, info, nil
}

// interruption is a deadline that has passed.
var interruption = time.Unix(1, 0)

// InterruptWith ends reads of a file that wait when ctx ends, until stop is called. Some of
// the kernel's files pass for regular ones and wait for news, such as /proc/kmsg.
func InterruptWith(ctx context.Context, file *os.File) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		_ = file.SetReadDeadline(interruption) // fails for files whose reads do not wait
	})
}

func wantRegular(path string, info os.FileInfo) error {
	switch {
	case info.IsDir():
		return fault.New(fault.InvalidRequest, "path '%s' is a directory", path)
	case !info.Mode().IsRegular():
		return fault.New(fault.InvalidRequest, "path '%s' is not a regular file", path)
	}
	return nil
}

// Replacement is the new content of a file, while it is being written. Until Commit the
// file is as it was; Abort gives the attempt up, also after a Commit that failed, and does
// nothing after one that did not. It is for one goroutine.
type Replacement struct {
	path, target string
	temp         *os.File
	mode         os.FileMode
	owner        Owner
	old          bool     // there is a file to be replaced
	made         madeDirs // for the file
}

// Replace begins to replace, or make, the file path, through links, and makes the
// directories above it. An existing file keeps its mode and what others noted down about
// it, but not its metadata; owner becomes the owner.
func Replace(path string, owner Owner) (*Replacement, error) {
	target, err := followLinks(path)
	if err == nil && strings.HasSuffix(target, "/") {
		err = unix.EISDIR
	}
	if err != nil {
		return nil, explain(err, "write", path)
	}
	r := &Replacement{path: path, target: target, mode: newFileMode, owner: owner}
	err = r.begin()
	if errors.Is(err, os.ErrNotExist) {
		// Whoever made the directory may have given up just now, and removed it.
		r.Abort()
		err = r.begin()
	}
	if err != nil {
		r.Abort()
		return nil, err
	}
	return r, nil
}

// begin looks at what is to be replaced and makes the temporary file.
func (r *Replacement) begin() error {
	kind := NewContent
	info, err := os.Lstat(r.target)
	switch {
	case err == nil:
		if err := wantRegular(r.path, info); err != nil {
			return err
		}
		// Without setuid and setgid, which the kernel too takes away from a changed file.
		r.mode, r.old = info.Mode().Perm(), true
	case errors.Is(err, os.ErrNotExist):
		kind = NewFile
		if r.made, err = makeDirs(filepath.Dir(r.target), r.owner); err != nil {
			return explain(err, "write", r.path)
		}
	default:
		return explain(err, "write", r.path)
	}
	// One file is to have one name here, whatever links its directory is reached by.
	dir, err := filepath.EvalSymlinks(filepath.Dir(r.target))
	if err != nil {
		return explain(err, "write", r.path)
	}
	r.target = filepath.Join(dir, filepath.Base(r.target))
	r.temp, err = os.CreateTemp(dir, kind.prefix()+"*")
	switch {
	case errors.Is(err, os.ErrNotExist): // the directory is there, as /proc is
		return fault.Wrap(err, fault.Forbidden, "the directory of '%s' takes no files; write it with a command", r.path)
	case err != nil:
		return explain(err, "write", r.path)
	}
	return nil
}

// maxLinks is how many links the kernel follows in one path.
const maxLinks = 40

// followLinks returns where path leads if its last part is a link, so that the link's
// target is replaced and not the link. The target need not exist.
func followLinks(path string) (string, error) {
	for range maxLinks {
		text, err := os.Readlink(path)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return path, nil // no link, or nothing there
		case err != nil:
			return "", err
		}
		if !filepath.IsAbs(text) {
			// The directory may be reached by a link itself, and then .. is elsewhere.
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", err
			}
			text = filepath.Join(dir, text)
		}
		path = text
	}
	return "", unix.ELOOP
}

// Target returns the path of the file that is replaced, with all links followed.
func (r *Replacement) Target() string { return r.target }

// ReadFrom writes all of src. It tells an error of src, which it returns as it is, from
// one of the file.
func (r *Replacement) ReadFrom(src io.Reader) (int64, error) {
	n, err := Copy(r.temp, src)
	var fileErr *os.PathError
	if errors.As(err, &fileErr) {
		err = explain(err, "write", r.path)
	}
	return n, err
}

// Commit makes what was written the file's content.
func (r *Replacement) Commit() error {
	temp := r.temp
	r.temp = nil
	var kept error
	if r.old {
		kept = copyXattrs(r.target, temp.Name(), lastingXattr)
	}
	err := errors.Join(
		kept,
		temp.Chown(int(r.owner.UID), int(r.owner.GID)),
		temp.Chmod(r.mode),
		temp.Close(),
	)
	if err == nil {
		err = os.Rename(temp.Name(), r.target)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return explain(err, "write", r.path)
	}
	r.made = nil
	return nil
}

// Abort removes what was written, and the directories that were made for it. Of several
// replacements the last one is to go first: it may be in a directory made for another.
func (r *Replacement) Abort() {
	if r.temp != nil {
		_ = r.temp.Close()
		_ = os.Remove(r.temp.Name())
		r.temp = nil
	}
	r.made.remove()
	r.made = nil
}

// Unreadable explains an error of reading what Open returned.
func Unreadable(err error, path string) error { return explain(err, actionRead, path) }
