package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// guestProgram is the guest daemon's file in its directory.
const guestProgram = "envd"

// Records and manifests name an image and a guest daemon by their paths of the day. Data and
// image directories get moved; what counts then is the last part of the path, which is never
// given to anything else.

// guestDirNow returns where the directory of a guest daemon is now: beside that of today's.
func (s *Service) guestDirNow(o origin) (string, error) {
	dir := filepath.Join(filepath.Dir(s.cfg.EnvdDir), filepath.Base(o.GuestDir))
	_, err := os.Stat(filepath.Join(dir, guestProgram))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.Wrap(err, fault.InvalidState,
			"the guest daemon %s that this sandbox was started with is not in the data directory any more; put it back there as guest/%[1]s/%s",
			filepath.Base(dir), guestProgram)
	}
	if err != nil {
		return "", fmt.Errorf("find the guest daemon: %w", err)
	}
	return dir, nil
}

// imageNow returns where an image is now: where it was, or beside the images of today. One
// that is nowhere the runtime misses under its old path.
func (s *Service) imageNow(o origin) (string, error) {
	if _, err := os.Stat(o.Image); !errors.Is(err, fs.ErrNotExist) {
		return o.Image, nil
	}
	images, err := s.cfg.Images.List()
	if err != nil {
		return "", fmt.Errorf("find the image: %w", err)
	}
	for _, im := range images {
		moved := filepath.Join(filepath.Dir(im.Path), filepath.Base(o.Image))
		if _, err := os.Stat(moved); err == nil {
			return moved, nil
		}
	}
	return o.Image, nil
}
