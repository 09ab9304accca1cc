package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// maxToolMessage bounds what is kept of what a tool in the sandbox complains, in bytes.
	maxToolMessage = 4 << 10
	// exitNotFound is what a shell ends with when there is no such program.
	exitNotFound = 127
	// localDirMode is for directories until their own mode is set.
	localDirMode = 0o700
)

// tool runs a program of the sandbox for our own purposes and turns what it complains
// into the error.
func (t *transfer) tool(ctx context.Context, in io.Reader, out io.Writer, cmd string, args ...string) (ended, error) {
	complaint := &tail{max: maxToolMessage}
	how, err := t.server.stream(ctx, t.id, clientMessage{Cmd: cmd, Args: args, User: t.user}, in, out, complaint)
	switch {
	case err != nil:
		return how, err
	case how.ExitCode == exitNotFound:
		return how, fault.New(fault.AgentError, "the sandbox lacks a program that copying a directory needs: %s", complaint)
	case how.ExitCode != 0 || how.Signal != "":
		return how, fault.New(fault.AgentError, "%s failed in the sandbox: %s", cmd, complaint)
	}
	return how, nil
}

// tail keeps the last bytes that were written to it.
type tail struct {
	max int
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if over := t.buf.Len() - t.max; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	lines := strings.Split(strings.TrimSpace(t.buf.String()), "\n")
	return printable(strings.Join(lines, "; "))
}

// upDirectory copies what is in the directory src into target, which is made. It travels
// as a tar archive through the stdin of tar in the sandbox.
func (t *transfer) upDirectory(ctx context.Context, src, target string) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newMeter(t.streams.err, path.Base(target), -1)
	defer m.stop()
	archive, into := io.Pipe()
	type packed struct {
		n   int64
		err error
	}
	done := make(chan packed, 1)
	go func() {
		// The pipe passes on write by write, and each would become a message of its own.
		buffered := bufio.NewWriterSize(m.writer(into), stdinChunk)
		n, err := t.pack(src, buffered)
		err = errors.Join(err, buffered.Flush())
		if err != nil {
			// tar must not take a part of the archive for the whole.
			cancel()
		}
		_ = into.CloseWithError(err) // never fails
		done <- packed{n, err}
	}()
	const script = `mkdir -p -- "$1" && exec tar -x -p --no-same-owner -f - -C "$1"`
	_, err := t.tool(ctx, archive, io.Discard, "sh", "-c", script, "sh", target)
	_ = archive.CloseWithError(io.ErrClosedPipe) // ends pack, if tar ended first
	result := <-done
	if result.err != nil && !errors.Is(result.err, io.ErrClosedPipe) {
		return result.n, result.err
	}
	return result.n, err
}

// pack writes the tree as a tar archive and returns how many bytes of contents it holds.
//
// It walks file names as they are: io/fs knows only those that are UTF-8.
func (t *transfer) pack(root string, to io.Writer) (int64, error) {
	tw := tar.NewWriter(to)
	var total int64
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		switch {
		case info.Mode().IsRegular(), info.IsDir():
		case info.Mode()&fs.ModeSymlink != 0:
			if link, err = os.Readlink(file); err != nil {
				return err
			}
		default:
			t.streams.warn("%s is left out: it is neither file, directory nor symlink", file)
			return nil
		}
		n, err := packOne(tw, file, name, link, info)
		total += n
		return err
	})
	if err != nil {
		return total, err // what Close says then is only that the archive is not whole
	}
	return total, tw.Close()
}

func packOne(tw *tar.Writer, file, name, link string, info fs.FileInfo) (int64, error) {
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return 0, err
	}
	// Whose it is here means nothing there.
	header.Name, header.Uid, header.Gid, header.Uname, header.Gname = name, 0, 0, "", ""
	if info.IsDir() {
		header.Name += "/"
	}
	if !utf8.ValidString(header.Name) || !utf8.ValidString(header.Linkname) {
		header.Format = tar.FormatGNU // the only one that takes names as bytes
	}
	if err := tw.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return 0, err
	}
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := io.CopyN(tw, f, header.Size)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s became shorter while it was read", name)
	}
	return n, err
}

// downDirectory copies what is in the sandbox's directory src into target, which is made.
func (t *transfer) downDirectory(ctx context.Context, src, target string) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := os.MkdirAll(target, 0o755); err != nil { //nolint:gosec // a directory as any other tool makes it
		return 0, err
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	m := newMeter(t.streams.err, path.Base(target), -1)
	defer m.stop()

	archive, into := io.Pipe()
	done := make(chan error, 1)
	go func() {
		// Hard links are files of their own: their names are the guest's to choose.
		_, err := t.tool(ctx, nil, m.writer(into), "tar", "-c", "--hard-dereference", "-f", "-", "-C", src, ".")
		_ = into.CloseWithError(err) // never fails
		done <- err
	}()
	n, err := t.unpack(root, archive)
	if err == nil {
		// Padding after the archive's end; without a reader tar would not come to its own.
		_, err = io.Copy(io.Discard, archive)
	}
	_ = archive.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		cancel()
	}
	if toolErr := <-done; toolErr != nil && !errors.Is(toolErr, io.ErrClosedPipe) && !errors.Is(toolErr, context.Canceled) {
		return n, toolErr
	}
	return n, err
}

// unpack extracts an archive that a guest made. Nothing it says leads out of root: not a
// name with dots in it, not a symlink that it made before.
func (t *transfer) unpack(root *os.Root, archive io.Reader) (int64, error) {
	tr := tar.NewReader(archive)
	var total int64
	var dirs []*tar.Header
	for {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return total, restoreModes(root, dirs)
		} else if err != nil {
			return total, err
		}
		name := path.Clean(header.Name)
		switch header.Typeflag {
		case tar.TypeDir:
			err = makeDir(root, name)
			dirs = append(dirs, header)
		case tar.TypeReg:
			var n int64
			n, err = unpackFile(root, name, header, tr)
			total += n
		case tar.TypeSymlink:
			err = replace(root, name, func() error { return root.Symlink(header.Linkname, name) })
		default:
			t.streams.warn("%s is left out: it is neither file, directory nor symlink", printable(name))
		}
		if err != nil {
			return total, err
		}
	}
}

func makeDir(root *os.Root, name string) error {
	if info, err := root.Lstat(name); err == nil && info.IsDir() {
		return nil
	}
	return root.Mkdir(name, localDirMode)
}

// restoreModes comes last: a directory that we may not write to could not be filled.
func restoreModes(root *os.Root, dirs []*tar.Header) error {
	for i := len(dirs) - 1; i >= 0; i-- {
		mode := fs.FileMode(dirs[i].Mode) & fs.ModePerm //nolint:gosec // only permission bits are kept
		if name := path.Clean(dirs[i].Name); name != "." {
			if err := root.Chmod(name, mode); err != nil {
				return err
			}
		}
	}
	return nil
}

// replace makes something at name in place of a file or symlink that is there.
func replace(root *os.Root, name string, create func() error) error {
	err := create()
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := root.Remove(name); err != nil {
		return err
	}
	return create()
}

func unpackFile(root *os.Root, name string, header *tar.Header, contents io.Reader) (int64, error) {
	var f *os.File
	err := replace(root, name, func() (err error) {
		f, err = root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(header.Mode)&fs.ModePerm) //nolint:gosec // only permission bits are kept
		return err
	})
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, contents)
	return n, errors.Join(err, f.Close())
}
