package filesystem

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Move renames source to destination, replacing a file there, and makes the missing
// directories above it.
func (f *Files) Move(ctx context.Context, source, destination string, owner Owner) (Entry, error) {
	if _, err := os.Lstat(source); err != nil {
		return Entry{}, explain(err, "move", source)
	}
	if err := makeDirs(filepath.Dir(destination), owner); err != nil {
		return Entry{}, explain(err, "make directories for", destination)
	}
	err := os.Rename(source, destination)
	switch {
	case errors.Is(err, unix.EINVAL):
		return Entry{}, fault.New(fault.InvalidRequest, "'%s' cannot be moved into itself", source)
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return Entry{}, fault.New(fault.Conflict, "'%s' exists already and is a directory", destination)
	case errors.Is(err, unix.ENOTDIR):
		return Entry{}, fault.New(fault.Conflict, "'%s' exists already and is not a directory", destination)
	case err != nil:
		return Entry{}, explain(err, "move", source)
	}
	return f.Stat(destination)
}
