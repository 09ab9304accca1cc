package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	logName = "build.log"

	// buildSpace is what a build needs on the disk at its widest: the downloaded
	// packages, the unpacked system and the image, in bytes.
	buildSpace = 1200 << 20
	// fullSpace is what is free, in bytes, of a disk that counts as full.
	fullSpace = 16 << 20

	// logTailLines is how much of the log an error shows.
	logTailLines = 12
	// logTailBytes bounds the same for a log of very long lines.
	logTailBytes = 4 << 10
)

// builder is one build of an image, in a directory of its own that it removes.
type builder struct {
	recipe recipe
	work   string
	lock   buildLock
	log    *os.File
	report func(step string)
}

// phase is one part of a build, with its name for people.
type phase struct {
	name string
	run  func(context.Context) error
}

// EnsureBase returns the base image, which it first builds when there is none of today's
// recipe. That takes about a minute; progress, which may be nil, hears of each step. When
// ctx ends, the build stops and leaves nothing behind.
func (s *Store) EnsureBase(ctx context.Context, progress func(Progress)) (Image, error) {
	r, err := baseRecipe(ctx, s.host)
	if err != nil {
		return Image{}, err
	}
	stem := baseName + "-" + r.key()
	if img, err := s.adopt(stem); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	report := reporter(progress)
	lock, err := waitLock(ctx, s.dir, func() { report("waiting for another build of the base image") })
	if err != nil {
		return Image{}, err
	}
	defer lock.release()
	if img, err := s.adopt(stem); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	if err := s.removeLeftovers(); err != nil {
		return Image{}, err
	}
	return s.build(ctx, r, stem, lock, report)
}

// adopt returns the finished image with a stem and makes it the base.
func (s *Store) adopt(stem string) (Image, error) {
	img, err := s.load(stem)
	if err != nil {
		return Image{}, err
	}
	if now, err := s.current(baseName); err == nil && now.Path == img.Path {
		return img, nil
	}
	return img, s.point(baseName, stem)
}

// reporter tells progress of each step by its text.
func reporter(progress func(Progress)) func(string) {
	return func(step string) {
		if progress == nil {
			return
		}
		done := slices.IndexFunc(stepTexts, func(s stepText) bool { return s.text == step })
		progress(Progress{Step: step, Done: max(done, 0), Total: len(stepTexts)})
	}
}

// build makes an image. The caller has the build lock.
func (s *Store) build(ctx context.Context, r recipe, stem string, lock buildLock, report func(string)) (img Image, err error) {
	if err := s.checkMachine(); err != nil {
		return Image{}, err
	}
	work, err := os.MkdirTemp(s.dir, workPrefix)
	if err != nil {
		return Image{}, fmt.Errorf("begin a build: %w", err)
	}
	defer func() {
		if removeErr := os.RemoveAll(work); removeErr != nil && err == nil {
			err = fmt.Errorf("tidy up a build: %w", removeErr)
		}
	}()
	log, err := os.Create(filepath.Join(s.dir, logName))
	if err != nil {
		return Image{}, fmt.Errorf("begin a build: %w", err)
	}
	defer func() { _ = log.Close() }()

	b := &builder{recipe: r, work: work, lock: lock, log: log, report: report}
	for _, p := range []phase{
		{"preparing the build", b.prepare},
		{"installing Debian", b.bootstrap},
		{"making the image", b.makeImage},
	} {
		if err := p.run(ctx); err != nil {
			return Image{}, s.explain(ctx, p.name, err)
		}
	}
	info, err := os.Stat(b.imageFile())
	if err != nil {
		return Image{}, fmt.Errorf("finish a build: %w", err)
	}
	return s.commit(b.imageFile(), stem, meta{
		Name:        baseName,
		SizeBytes:   info.Size(),
		DefaultUser: baseDefaultUser,
		CreatedAt:   time.Now().UTC().Truncate(time.Second),
	})
}

// checkMachine tells what a build would fail for, before it begins.
func (s *Store) checkMachine() error {
	if os.Geteuid() != 0 {
		return fault.New(fault.HostUnavailable, "building the base image needs root; run this as root")
	}
	for _, tool := range []struct{ name, pkg string }{
		{"mmdebstrap", "mmdebstrap"},
		{"mkfs.erofs", "erofs-utils"},
		{"chroot", "coreutils"},
	} {
		if _, err := exec.LookPath(tool.name); err != nil {
			return fault.Wrap(err, fault.HostUnavailable,
				"building the base image needs %s; install it with: apt-get install %s", tool.name, tool.pkg)
		}
	}
	free, err := freeSpace(s.dir)
	if err != nil {
		return fmt.Errorf("look for room to build in: %w", err)
	}
	if free < buildSpace {
		return fault.New(fault.NoSpace, "building the base image needs %d MiB free in %s, and there are %d MiB",
			buildSpace>>20, s.dir, free>>20)
	}
	return nil
}

// freeSpace is how many bytes may be written where dir is.
func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// explain turns the failure of a phase into an error that its reader can act on.
func (s *Store) explain(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", name, ctx.Err())
	}
	logPath := filepath.Join(s.dir, logName)
	if free, statErr := freeSpace(s.dir); statErr == nil && free < fullSpace {
		return fault.Wrap(err, fault.NoSpace, "the disk that holds %s is full: %s stopped; make room (%d MiB) and try again",
			s.dir, name, buildSpace>>20)
	}
	return fault.Wrap(err, fault.Internal, "%s failed; the log %s ends with:\n%s", name, logPath, tail(logPath))
}

// tail returns the last lines of a log.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "(the log cannot be read)"
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > logTailBytes {
		if _, err := f.Seek(-logTailBytes, io.SeekEnd); err != nil {
			return "(the log cannot be read)"
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return "(the log cannot be read)"
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > logTailLines {
		lines = lines[len(lines)-logTailLines:]
	}
	return strings.Join(lines, "\n")
}
