package filesystem

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Type is what a path leads to.
type Type uint8

// The types. Symbolic links have the type of their target.
const (
	// Other is a device, a pipe, a socket, or a link that leads nowhere.
	Other Type = iota
	File
	Directory
)

// Entry is what is known about one path.
type Entry struct {
	Name string
	Path string
	Type Type
	// Size in bytes, of the link itself for a link.
	Size int64
	// Mode holds the permission bits, of the target for a link.
	Mode uint32
	// Permissions are type and permission bits in letters, of the link itself for a link.
	Permissions  string
	Owner, Group string
	ModTime      time.Time
	// SymlinkTarget is the absolute path that a link leads to, empty for all else.
	SymlinkTarget string
	// Metadata is what clients noted down about the file, or about a link's target.
	Metadata map[string]string
}

// Stat describes path, without following it if it is a link.
func (f *Files) Stat(path string) (Entry, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return Entry{}, explain(err, "look at", path)
	}
	return f.entry(path, info), nil
}

func (f *Files) entry(path string, info os.FileInfo) Entry {
	e := Entry{
		Name:        info.Name(),
		Path:        path,
		Type:        typeOf(info.Mode()),
		Size:        info.Size(),
		Mode:        uint32(info.Mode().Perm()),
		Permissions: info.Mode().String(),
		ModTime:     info.ModTime(),
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = f.names.UserName(st.Uid), f.names.GroupName(st.Gid)
	}
	if info.Mode()&os.ModeSymlink == 0 {
		if e.Type != Other {
			e.Metadata = metadata(path)
		}
		return e
	}
	if target, err := os.Stat(path); err == nil {
		e.Type, e.Mode = typeOf(target.Mode()), uint32(target.Mode().Perm())
		if e.Type != Other {
			e.Metadata = metadata(path)
		}
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		e.SymlinkTarget = resolved
	} else if text, err := os.Readlink(path); err == nil {
		// It leads nowhere; say where it would.
		if !filepath.IsAbs(text) {
			text = filepath.Join(filepath.Dir(path), text)
		}
		e.SymlinkTarget = filepath.Clean(text)
	}
	return e
}

func typeOf(mode os.FileMode) Type {
	switch {
	case mode.IsRegular():
		return File
	case mode.IsDir():
		return Directory
	}
	return Other
}

// maxEntries bounds one listing. A list is answered in one piece, and the daemon's memory
// is the sandbox's.
const maxEntries = 100_000

// List describes what is in the directory path, each directory followed by what is in it,
// down to depth levels (0 means 1), names in byte order. A link is followed at path
// itself and nowhere below. What vanishes meanwhile is left out.
func (f *Files) List(ctx context.Context, path string, depth uint32) ([]Entry, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, explain(err, "list", path)
	}
	if !info.IsDir() {
		return nil, fault.New(fault.InvalidRequest, "path '%s' is not a directory", path)
	}
	l := lister{files: f, ctx: ctx, root: path}
	if err := l.walk(path, max(depth, 1)); err != nil {
		return nil, explain(err, "list", path)
	}
	return l.entries, nil
}

// lister is one listing in progress.
type lister struct {
	files   *Files
	ctx     context.Context
	root    string
	entries []Entry
}

func (l *lister) walk(dir string, depth uint32) error {
	if err := context.Cause(l.ctx); err != nil {
		return err
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		if dir != l.root && (errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission)) {
			return nil
		}
		return err
	}
	for _, one := range found {
		info, err := one.Info()
		if err != nil {
			continue
		}
		if len(l.entries) == maxEntries {
			return fault.New(fault.PayloadTooLarge,
				"'%s' has more than %d entries at this depth; list it with a smaller depth, or a directory in it", l.root, maxEntries)
		}
		path := filepath.Join(dir, one.Name())
		l.entries = append(l.entries, l.files.entry(path, info))
		if info.IsDir() && depth > 1 {
			if err := l.walk(path, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}
