package filesystem

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Compose makes destination of what is in sources, in their order, and removes them. If
// anything fails before destination is complete, everything is as it was.
func (f *Files) Compose(ctx context.Context, sources []string, destination string, owner Owner) (Entry, error) {
	r, err := Replace(destination, owner)
	if err != nil {
		return Entry{}, err
	}
	defer r.Abort()
	for _, source := range sources {
		if err := r.appendFile(ctx, source); err != nil {
			return Entry{}, err
		}
	}
	if err := r.Commit(); err != nil {
		return Entry{}, err
	}
	made, err := os.Stat(r.Target())
	if err != nil {
		return Entry{}, explain(err, actionRead, destination)
	}
	for _, source := range sources {
		// A file may be appended to itself; it is the destination then, by whatever name.
		if info, err := os.Stat(source); err == nil && os.SameFile(info, made) {
			continue
		}
		if err := f.Remove(source); err != nil {
			return Entry{}, fault.Wrap(err, fault.CodeOf(err), "'%s' was composed, but not all that it was made of could be removed: %s",
				destination, fault.MessageOf(err))
		}
	}
	return f.Stat(destination)
}

func (r *Replacement) appendFile(ctx context.Context, source string) error {
	src, _, err := Open(source)
	if err != nil {
		return err
	}
	defer src.Close()
	defer InterruptWith(ctx, src)()
	_, err = r.ReadFrom(&cancelable{ctx, src, source})
	return err
}

// cancelable reads a file until somebody does not want it any more.
type cancelable struct {
	ctx  context.Context
	file *os.File
	path string
}

func (c *cancelable) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	n, err := c.file.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = Unreadable(err, c.path)
	}
	return n, err
}
