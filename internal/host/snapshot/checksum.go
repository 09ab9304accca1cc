package snapshot

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// pieceSize is what one checksum is of, in bytes.
	pieceSize = 16 << 20
	// hashers is how many pieces of all snapshots are read at once: a large resume must not
	// take the machine from the sandboxes on it.
	hashers = 2
	// bufferSize is how much is read at once, in bytes: it stays in the cache of a core
	// between the copy from the page cache and the checksum.
	bufferSize = 256 << 10
)

// ErrDamaged is in the chain of every error that says that a snapshot is not what was
// written down.
var ErrDamaged = errors.New("snapshot damaged")

func damaged(id, format string, args ...any) error {
	return fault.Wrap(ErrDamaged, fault.Internal, "snapshot %s is damaged and was not used: %s", id, fmt.Sprintf(format, args...))
}

// pieces is how many checksums a file of that size has.
func pieces(size int64) int64 { return size/pieceSize + min(size%pieceSize, 1) }

// buffers are shared by all checksums of the process.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// sums computes checksums, few at a time for the whole store.
type sums struct{ free chan struct{} }

func newSums() sums { return sums{free: make(chan struct{}, hashers)} }

// file starts the computation of all checksums of a file of that size in g and passes each
// to each, from several goroutines at once. The file must stay open until g is done.
func (s sums) file(ctx context.Context, g *errgroup.Group, file *os.File, size int64, each func(piece int64, sum uint32) error) {
	for i := range pieces(size) {
		g.Go(func() error {
			select {
			case s.free <- struct{}{}:
				defer func() { <-s.free }()
			case <-ctx.Done():
				return ctx.Err()
			}
			sum, err := checksum(ctx, file, i*pieceSize, min(size-i*pieceSize, pieceSize))
			if err != nil {
				return err
			}
			return each(i, sum)
		})
	}
}

// checksum returns the CRC-32C of length bytes from offset on. A file that ends before is
// io.ErrUnexpectedEOF.
func checksum(ctx context.Context, file *os.File, offset, length int64) (uint32, error) {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	var sum uint32
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := file.ReadAt((*buffer)[:min(length, bufferSize)], offset)
		if n == 0 && errors.Is(err, io.EOF) {
			return 0, io.ErrUnexpectedEOF
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, (*buffer)[:n])
		offset, length = offset+int64(n), length-int64(n)
	}
	return sum, nil
}

// Verify reads a snapshot and compares it with what was committed. The error names the
// file and how it differs. A Fork has nothing to be compared with: fault.InvalidState. It
// uses two cores at most.
func (s *Store) Verify(ctx context.Context, id string) error {
	snap, err := s.Get(id)
	if err != nil {
		return err
	}
	if !snap.Kind.lasts() {
		return fault.New(fault.InvalidState, "snapshot %s was made for copies that were waited for, and cannot be verified", id)
	}
	dir, release, err := s.Use(id)
	if err != nil {
		return err
	}
	defer release()
	if err := checkNames(id, dir, snap.Files); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	for _, want := range snap.Files {
		file, err := openPlain(filepath.Join(dir, want.Name))
		if err != nil {
			_ = g.Wait() // what was started ends before its files are closed
			return damaged(id, "%s cannot be read (%v)", want.Name, errors.Unwrap(err))
		}
		opened = append(opened, file)
		info, err := file.Stat()
		if err != nil || info.Size() != want.Size || !info.Mode().IsRegular() {
			_ = g.Wait()
			return s.differs(id, want, info, err)
		}
		s.sums.file(gctx, g, file, want.Size, func(piece int64, sum uint32) error {
			if sum == want.CRC32C[piece] {
				return nil
			}
			const mib = 1 << 20
			return s.found(id, "%s differs from what was written in its %d MiB from MiB %d on", want.Name, pieceSize/mib, piece*pieceSize/mib)
		})
	}
	err = g.Wait()
	switch {
	case err == nil:
		s.note(id, "")
		return nil
	case fault.Is(err, fault.Canceled) || errors.Is(err, ErrDamaged) || ctx.Err() != nil:
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return damaged(id, "a file of it was cut short while it was read")
	}
	return fault.Wrap(errors.Join(ErrDamaged, err), fault.Internal, "snapshot %s cannot be read from the host's disk; look at the disk's health", id)
}

// found is damaged for what is surely in the files, and noted.
func (s *Store) found(id, format string, args ...any) error {
	s.note(id, fmt.Sprintf(format, args...))
	return damaged(id, format, args...)
}

// note keeps what a Verify found.
func (s *Store) note(id, differs string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.kept[id]; k != nil {
		k.snapshot.Differs = differs
	}
}

func (s *Store) differs(id string, want File, info os.FileInfo, err error) error {
	switch {
	case err != nil:
		return fault.Wrap(errors.Join(ErrDamaged, err), fault.Internal, "snapshot %s cannot be read from the host's disk; look at the disk's health", id)
	case !info.Mode().IsRegular():
		return s.found(id, "%s is no regular file", want.Name)
	}
	return s.found(id, "%s has %d bytes and not %d", want.Name, info.Size(), want.Size)
}

// checkNames compares what lies in dir with what should.
func checkNames(id, dir string, files []File) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return damaged(id, "its files cannot be listed (%v)", errors.Unwrap(err))
	}
	missing := make(map[string]bool, len(files))
	for _, f := range files {
		missing[f.Name] = true
	}
	for _, e := range entries {
		if !missing[e.Name()] {
			return damaged(id, "%s is in it and was not when it was written", e.Name())
		}
		delete(missing, e.Name())
	}
	for _, f := range files {
		if missing[f.Name] {
			return damaged(id, "%s is missing", f.Name)
		}
	}
	return nil
}

// openPlain opens a file for reading and neither follows a link nor waits for a pipe.
func openPlain(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}
