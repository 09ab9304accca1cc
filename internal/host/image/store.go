// Package image keeps the images that sandboxes start from, one read-only EROFS file
// each, and builds the base image from the Debian mirror that the machine's own apt uses.
//
// It must not know of sandboxes, runtimes or the guest daemon: an image is a plain
// Debian, and what runs it brings the rest.
package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Image is a file system that a sandbox may start from.
type Image struct {
	Name string
	// Path is absolute, names an EROFS file, and is stable for the life of the image: the
	// file is never changed, nor removed by itself, and a newer image of the same name gets
	// another path: what was saved of a sandbox wants the very image back.
	Path        string
	SizeBytes   int64
	DefaultUser string
	CreatedAt   time.Time
}

// Progress is news of a build, for people.
type Progress struct {
	Step string
	// Done steps of Total.
	Done, Total int
}

const (
	imageExt   = ".erofs"
	metaExt    = ".json"
	currentExt = ".current" // contains the stem of the image that a name stands for

	// workPrefix begins the names of directories and files that are not finished.
	workPrefix = "tmp-"

	dirMode  = 0o755
	fileMode = 0o644
)

// Store is a directory of images. It is safe for concurrent use, and by several
// processes at once. It holds nothing open, so it needs no closing.
type Store struct {
	dir  string
	host hostPaths
}

// meta is what is kept beside an image's file.
type meta struct {
	Name        string    `json:"name"`
	SizeBytes   int64     `json:"size_bytes"`
	DefaultUser string    `json:"default_user"`
	CreatedAt   time.Time `json:"created_at"`
}

// Open returns the store in a directory, which it makes, and removes what a killed build
// left there. A build that is going on in another process is not disturbed.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := os.MkdirAll(abs, dirMode); err != nil {
		return nil, fault.Wrap(err, fault.HostUnavailable, "the image directory %s cannot be made", abs)
	}
	apt := aptHost{
		etc:      "/etc/apt",
		lists:    "/var/lib/apt/lists",
		arch:     debianArch(),
		override: os.Getenv(sourcesEnv),
	}
	s := &Store{dir: abs, host: thisHost(apt)}
	lock, free, err := tryLock(abs)
	if err != nil {
		return nil, fault.Wrap(err, fault.HostUnavailable, "the image directory %s cannot be used", abs)
	}
	if !free {
		return s, nil
	}
	defer lock.release()
	if err := s.removeLeftovers(); err != nil {
		return nil, err
	}
	return s, nil
}

// removeLeftovers removes the work of builds that did not finish. The caller has the
// build lock.
func (s *Store) removeLeftovers() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("read image directory: %w", err)
	}
	for _, e := range entries {
		half, err := filepath.Match(atomicfile.Pattern, e.Name())
		if err != nil {
			return err
		}
		if !half && !strings.HasPrefix(e.Name(), workPrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
			return fmt.Errorf("remove the leftovers of a build: %w", err)
		}
	}
	return nil
}

// Lookup returns the image that a name stands for now.
func (s *Store) Lookup(name string) (Image, error) {
	if validName(name) {
		img, err := s.current(name)
		if err == nil {
			return img, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return Image{}, err
		}
	}
	images, err := s.List()
	if err != nil {
		return Image{}, err
	}
	if len(images) == 0 {
		return Image{}, fault.New(fault.NotFound, "template %q does not exist; there are none yet", name)
	}
	names := make([]string, len(images))
	for i, img := range images {
		names[i] = img.Name
	}
	return Image{}, fault.New(fault.NotFound, "template %q does not exist; there are: %s", name, strings.Join(names, ", "))
}

// List returns all images by name.
func (s *Store) List() ([]Image, error) {
	pointers, err := filepath.Glob(filepath.Join(s.dir, "*"+currentExt))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var images []Image
	for _, p := range pointers {
		img, err := s.current(strings.TrimSuffix(filepath.Base(p), currentExt))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return images, nil
}

// validName keeps a name that a user sent from being a path.
func validName(name string) bool {
	const longest = 128
	return name != "" && len(name) <= longest && !strings.ContainsAny(name, "/\x00") && name[0] != '.'
}

// current returns the image that a name's pointer names; fs.ErrNotExist when there is
// none, or when its files are gone.
func (s *Store) current(name string) (Image, error) {
	stem, err := os.ReadFile(filepath.Join(s.dir, name+currentExt))
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", name, err)
	}
	return s.load(string(stem))
}

// load returns the image with a file name stem. A file that has not the size that was
// noted when it was made is damaged, and as good as missing.
func (s *Store) load(stem string) (Image, error) {
	if !validName(stem) {
		return Image{}, fmt.Errorf("image %q has no valid name: %w", stem, fs.ErrNotExist)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, stem+metaExt))
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", stem, err)
	}
	var m meta
	if err := json.Unmarshal(text, &m); err != nil {
		return Image{}, fmt.Errorf("image %s has damaged metadata (%w): %w", stem, err, fs.ErrNotExist)
	}
	path := filepath.Join(s.dir, stem+imageExt)
	info, err := os.Stat(path)
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", stem, err)
	}
	if info.Size() != m.SizeBytes {
		return Image{}, fmt.Errorf("image %s is damaged: %d of %d bytes: %w", stem, info.Size(), m.SizeBytes, fs.ErrNotExist)
	}
	return Image{Name: m.Name, Path: path, SizeBytes: m.SizeBytes, DefaultUser: m.DefaultUser, CreatedAt: m.CreatedAt}, nil
}

// commit makes a finished file the image with a stem, and the one that its name stands
// for. The image appears whole or not at all, even if the machine loses power.
func (s *Store) commit(file, stem string, m meta) (Image, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return Image{}, fmt.Errorf("keep image %s: %w", stem, err)
	}
	if err := syncFile(file); err != nil {
		return Image{}, fmt.Errorf("keep image %s: %w", stem, err)
	}
	if err := os.Rename(file, filepath.Join(s.dir, stem+imageExt)); err != nil {
		return Image{}, fmt.Errorf("keep image %s: %w", stem, err)
	}
	if err := s.writeWhole(stem+metaExt, text); err != nil {
		return Image{}, err
	}
	if err := s.point(m.Name, stem); err != nil {
		return Image{}, err
	}
	return s.load(stem)
}

// point makes name stand for the image with a stem.
func (s *Store) point(name, stem string) error {
	return s.writeWhole(name+currentExt, []byte(stem))
}

// writeWhole replaces a file of the store in one step.
func (s *Store) writeWhole(name string, data []byte) error {
	if err := atomicfile.WriteDurable(filepath.Join(s.dir, name), data, fileMode); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// syncFile waits until a file or directory is on the disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
