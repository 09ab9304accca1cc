package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// executable are the permission bits that a copy keeps besides what the other side gives
// a new file.
const executable fs.FileMode = 0o111

// place is one end of a copy: a path here, or in a sandbox.
type place struct {
	sandbox string // empty: here
	path    string
}

// parsePlace reads ID:PATH or a local path. A local path with a colon is written with a
// slash before it, as in ./a:b.
func parsePlace(text string) place {
	id, rest, ok := strings.Cut(text, ":")
	if !ok || id == "" || strings.ContainsAny(id, "/.") {
		return place{path: text}
	}
	if rest == "" {
		rest = "." // the user's home
	}
	return place{sandbox: id, path: rest}
}

// copied is what `cp --json` prints.
type copied struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	// Bytes of file contents.
	Bytes int64 `json:"bytes"`
}

// transfer is one copy between here and a sandbox.
type transfer struct {
	server  *server
	id      string
	user    string
	streams streams
}

func newCopy(a *app) *cobra.Command {
	var user string
	cmd := command(&cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files into or out of a sandbox",
		Long: `Copies a file or a directory. One of SRC and DST is ID:PATH, a path in a sandbox; a relative
one starts at the user's home. The other is a local path, or - for stdin or stdout. Into a
directory that exists the source is copied under its own name.`,
		Example: `  wrenn cp notes.txt sb0c9f4kq2m7x1v8t3z5wd:
  wrenn cp sb0c9f4kq2m7x1v8t3z5wd:/var/log ./log
  wrenn cp sb0c9f4kq2m7x1v8t3z5wd:/etc/os-release -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			src, dst := parsePlace(args[0]), parsePlace(args[1])
			if (src.sandbox == "") == (dst.sandbox == "") {
				return usageErrorf(cmd, "one of SRC and DST must be ID:PATH, and the other a local path")
			}
			s, err := connect()
			if err != nil {
				return err
			}
			t := &transfer{server: s, id: src.sandbox + dst.sandbox, user: user, streams: streamsOf(cmd)}
			var n int64
			if dst.sandbox != "" {
				n, err = t.up(cmd.Context(), src.path, dst.path)
			} else {
				n, err = t.down(cmd.Context(), src.path, dst.path)
			}
			if err != nil {
				return fmt.Errorf("copy %s to %s: %w", args[0], args[1], err)
			}
			if a.json {
				out := cmd.OutOrStdout()
				if dst.path == "-" && dst.sandbox == "" {
					out = cmd.ErrOrStderr() // standard output is the file
				}
				return printJSON(out, copied{Source: args[0], Destination: args[1], Bytes: n})
			}
			return nil
		},
	}, takes(2, 2, "cp wants a source and a destination"))
	cmd.Flags().StringVarP(&user, "user", "u", "", "on whose behalf in the sandbox (default the sandbox's user)")
	return cmd
}

// up copies from here into the sandbox and returns how many bytes of contents it sent.
func (t *transfer) up(ctx context.Context, src, dst string) (int64, error) {
	if src == "-" {
		if strings.HasSuffix(dst, "/") || dst == "." {
			return 0, fault.New(fault.InvalidRequest, "from stdin the destination must be a file's path")
		}
		return t.upload(ctx, t.streams.in, -1, dst)
	}
	info, err := os.Stat(src)
	if err != nil {
		return 0, err
	}
	target, err := t.remoteTarget(ctx, dst, localName(src), info.IsDir())
	if err != nil {
		return 0, err
	}
	if info.IsDir() {
		return t.upDirectory(ctx, src, target)
	}
	f, err := os.Open(src)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size := info.Size()
	if !info.Mode().IsRegular() {
		size = -1
	}
	n, err := t.upload(ctx, f, size, target)
	if err != nil || info.Mode()&executable == 0 {
		return n, err
	}
	// A script that was executable here should be there; the API writes plain files.
	_, err = t.tool(ctx, nil, io.Discard, "chmod", "+x", "--", target)
	return n, err
}

// localName is what a local path's copy is called: "." has the name of the directory that
// it is. A path that ends in "/." means what is inside.
func localName(src string) string {
	if strings.HasSuffix(src, "/.") {
		return "."
	}
	if abs, err := filepath.Abs(src); err == nil {
		return filepath.Base(abs)
	}
	return filepath.Base(src)
}

// remoteTarget is where in the sandbox a source called name goes.
func (t *transfer) remoteTarget(ctx context.Context, dst, name string, isDir bool) (string, error) {
	entry, err := t.server.stat(ctx, t.id, dst, t.user)
	switch {
	case err == nil && entry.Type == api.Directory:
		return path.Join(dst, name), nil
	case err == nil && isDir && entry.Type == api.File:
		return "", fault.New(fault.Conflict, "%s is a file in the sandbox, and the source is a directory", dst)
	case err == nil, isDir && fault.Is(err, fault.NotFound):
		return dst, nil
	case fault.Is(err, fault.NotFound) && strings.HasSuffix(dst, "/"):
		return dst + name, nil // its directory is made
	case fault.Is(err, fault.NotFound):
		return dst, t.exists(ctx)
	}
	return "", err
}

// exists tells a sandbox that is not there from a path that is not there.
func (t *transfer) exists(ctx context.Context) error {
	return discard(t.server.api.GetSandbox(ctx, t.id))
}

// upload writes one file of the sandbox. The size is -1 when it is not known.
func (t *transfer) upload(ctx context.Context, from io.Reader, size int64, target string) (int64, error) {
	m := newMeter(t.streams.err, path.Base(target), size)
	defer m.stop()
	counted := &counter{r: m.reader(from)}
	withSize := func(_ context.Context, req *http.Request) error {
		req.ContentLength = size
		if size == 0 {
			req.Body = http.NoBody
		}
		return nil
	}
	params := &api.StreamWriteFileParams{Path: target, User: t.user}
	err := discard(t.server.api.StreamWriteFileWithBody(ctx, t.id, params, "application/octet-stream", io.NopCloser(counted), withSize))
	return counted.n, err
}

// counter counts what is read. It is for one goroutine at a time.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// down copies from the sandbox to here and returns how many bytes of contents it got.
func (t *transfer) down(ctx context.Context, src, dst string) (int64, error) {
	if dst == "-" {
		return t.download(ctx, src, -1, t.streams.out)
	}
	entry, err := t.server.stat(ctx, t.id, src, t.user)
	if err != nil {
		return 0, err
	}
	isDir := entry.Type == api.Directory
	target, err := localTarget(dst, path.Base(entry.Path), isDir, strings.HasSuffix(src, "/."))
	if err != nil {
		return 0, err
	}
	if isDir {
		return t.downDirectory(ctx, src, target)
	}
	if info, err := os.Stat(target); err == nil && !info.Mode().IsRegular() {
		return t.downInto(ctx, src, target, entry.Size)
	}
	return t.downFile(ctx, src, target, entry)
}

// localTarget is where here a source called name goes; contents wants what is inside a
// directory rather than the directory.
func localTarget(dst, name string, isDir, contents bool) (string, error) {
	info, err := os.Stat(dst)
	switch {
	case err == nil && isDir && !info.IsDir():
		return "", fault.New(fault.Conflict, "%s is a file, and the source is a directory", dst)
	case err == nil && info.IsDir() && !contents:
		// The name is the guest's to choose; it must not lead out of dst.
		if !filepath.IsLocal(name) {
			return "", fault.New(fault.InvalidRequest, "the source has no name of its own (%q); name the destination", name)
		}
		return filepath.Join(dst, name), nil
	case err == nil, errors.Is(err, fs.ErrNotExist) && (isDir || !strings.HasSuffix(dst, "/")):
		return dst, nil
	}
	return "", err
}

// downInto copies to something that is no regular file, such as a device or a named pipe.
func (t *transfer) downInto(ctx context.Context, src, target string, size int64) (int64, error) {
	f, err := os.OpenFile(target, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	n, err := t.download(ctx, src, size, f)
	return n, errors.Join(err, f.Close())
}

// downFile copies to a file that appears when it is complete, and not before.
func (t *transfer) downFile(ctx context.Context, src, target string, entry api.FileEntry) (int64, error) {
	temp, err := os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+".*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(temp.Name()) // gone already after the rename
	size := entry.Size
	if entry.Type != api.File {
		size = -1 // a symlink's own size says nothing of its target's
	}
	n, err := t.download(ctx, src, size, temp)
	if err == nil {
		err = temp.Chmod(localMode(entry))
	}
	if err := errors.Join(err, temp.Close()); err != nil {
		return n, err
	}
	return n, os.Rename(temp.Name(), target)
}

// localMode is the mode of the copy of a file: its permission bits, writable by us.
func localMode(entry api.FileEntry) fs.FileMode {
	const plain, ours = 0o644, 0o600
	if entry.Type != api.File {
		return plain
	}
	return fs.FileMode(entry.Mode)&fs.ModePerm | ours //nolint:gosec // only permission bits are kept
}

func (t *transfer) download(ctx context.Context, src string, size int64, to io.Writer) (int64, error) {
	resp, err := t.server.api.StreamReadFile(ctx, t.id, api.PathRequest{Path: src, User: t.user})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	m := newMeter(t.streams.err, path.Base(src), size)
	defer m.stop()
	n, err := io.CopyBuffer(m.writer(onlyWriter{to}), resp.Body, make([]byte, transferBuffer))
	if err != nil {
		return n, fmt.Errorf("after %d bytes: %w", n, err)
	}
	return n, nil
}

// onlyWriter hides ReadFrom, which would copy through a small buffer of its own.
type onlyWriter struct{ io.Writer }
