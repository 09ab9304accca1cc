package sandbox

import (
	"context"
	"io"
)

// Files is the files of sandboxes. Get it from Service.Files. An empty user is the
// sandbox's default user; a relative path starts at the user's home. It is safe for
// concurrent use.
type Files struct {
	core *Service
	host HostFiles
}

// begin checks the paths and begins an action.
func (f *Files) begin(ctx context.Context, id, user string, paths ...string) (done func(), err error) {
	for _, p := range paths {
		if err := checkPath("path", p); err != nil {
			return nil, err
		}
	}
	if err := checkText("user", user); err != nil {
		return nil, err
	}
	return f.core.use(ctx, id, request)
}

// Stat describes one file, directory or link.
func (f *Files) Stat(ctx context.Context, id, user, path string) (FileEntry, error) {
	done, err := f.begin(ctx, id, user, path)
	if err != nil {
		return FileEntry{}, err
	}
	defer done()
	return f.host.Stat(ctx, id, user, path)
}

// List returns what a directory holds, depth levels deep.
func (f *Files) List(ctx context.Context, id, user, path string, depth int) ([]FileEntry, error) {
	done, err := f.begin(ctx, id, user, path)
	if err != nil {
		return nil, err
	}
	defer done()
	return f.host.List(ctx, id, user, path, depth)
}

// MakeDir makes a directory and its parents.
func (f *Files) MakeDir(ctx context.Context, id, user, path string) (FileEntry, error) {
	done, err := f.begin(ctx, id, user, path)
	if err != nil {
		return FileEntry{}, err
	}
	defer done()
	return f.host.MakeDir(ctx, id, user, path)
}

// Move renames.
func (f *Files) Move(ctx context.Context, id, user, from, to string) (FileEntry, error) {
	done, err := f.begin(ctx, id, user, from, to)
	if err != nil {
		return FileEntry{}, err
	}
	defer done()
	return f.host.Move(ctx, id, user, from, to)
}

// Remove removes a file, or a directory with all that it holds.
func (f *Files) Remove(ctx context.Context, id, user, path string) error {
	done, err := f.begin(ctx, id, user, path)
	if err != nil {
		return err
	}
	defer done()
	return f.host.Remove(ctx, id, user, path)
}

// Read streams one file; the caller closes it. The sandbox is in use until then.
func (f *Files) Read(ctx context.Context, id, user, path string) (Contents, error) {
	done, err := f.begin(ctx, id, user, path)
	if err != nil {
		return Contents{}, err
	}
	c, err := f.host.Read(ctx, id, user, path)
	if err != nil {
		done()
		return Contents{}, err
	}
	c.ReadCloser = closer{c.ReadCloser, done}
	return c, nil
}

// Write makes what r yields the contents of one file. Size is -1 when it is unknown.
func (f *Files) Write(ctx context.Context, id, user, path string, r io.Reader, size int64) error {
	done, err := f.begin(ctx, id, user, path)
	if err != nil {
		return err
	}
	defer done()
	return f.host.Write(ctx, id, user, path, r, size)
}

type closer struct {
	io.ReadCloser
	done func()
}

func (c closer) Close() error {
	defer c.done()
	return c.ReadCloser.Close()
}
