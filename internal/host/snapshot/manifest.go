package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// version is that of the manifest's format.
const version = 1

// maxManifest bounds how large a manifest may be, in bytes: an environment can be large,
// a gigabyte of it is damage.
const maxManifest = 16 << 20

// Kind is what a snapshot was made for.
type Kind string

// The kinds.
const (
	Pause    Kind = "pause"    // to resume the sandbox itself
	Template Kind = "template" // to create others from, under a name
	// Fork is one to make copies from while they are waited for, which is dropped when they
	// are made. It is not made to last: it has no checksums, and is not synced to the disk.
	Fork Kind = "fork"
)

// lasts says whether snapshots of a kind are to be there, whole, after a loss of power.
func (k Kind) lasts() bool { return k != Fork }

// Resources are the limits of the sandbox that was written down.
type Resources struct {
	VCPUs    int `json:"vcpus"`
	MemoryMB int `json:"memory_mb"` // for the guest, in MiB
	DiskMB   int `json:"disk_mb"`   // what the guest may write, in MiB
}

// File is one file of a snapshot as it was when it was committed.
type File struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes
	// CRC32C holds the CRC-32 (Castagnoli) of each piece of 16 MiB, the last of which may be
	// shorter. Pieces are verified side by side, and tell where a file is damaged. A Fork has
	// none.
	CRC32C []uint32 `json:"crc32c"`
}

// Manifest says what a snapshot is of and what it consists of.
type Manifest struct {
	// Version, ID and Files are filled in by Commit.
	Version int    `json:"version"`
	ID      string `json:"id"`
	Kind    Kind   `json:"kind"`
	// SandboxID is the sandbox that was written down, Template what that was made from.
	SandboxID string    `json:"sandbox_id"`
	Template  string    `json:"template"`
	Resources Resources `json:"resources"`
	// Runtime is the driver that wrote it. Image and GuestDir are host paths of what has
	// to be there for a restore, as it was; it may have been moved since.
	Runtime     string            `json:"runtime"`
	Image       string            `json:"image"`
	GuestDir    string            `json:"guest_dir"`
	Env         map[string]string `json:"env,omitempty"`
	DefaultUser string            `json:"default_user,omitempty"`
	// Token is what the guest daemon in the snapshot expects on every request. Secret.
	Token     string    `json:"token"`
	CreatedAt time.Time `json:"created_at"`
	// Stopped is how long the sandbox stood still for it.
	Stopped time.Duration `json:"stopped_ns"`
	Files   []File        `json:"files"`
}

// envelope is how a manifest lies on the disk: with a checksum of its own, since a wrong
// image or token would be as bad as a wrong byte of memory.
type envelope struct {
	Manifest json.RawMessage `json:"manifest"`
	CRC32C   uint32          `json:"crc32c"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns m as it lies on the disk.
func (m Manifest) encode() ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope{Manifest: raw, CRC32C: crc32.Checksum(raw, castagnoli)})
}

// decode is the other end of encode. What it returns can be relied on: names of files are
// plain, checksums complete.
func decode(data []byte) (Manifest, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Manifest{}, fmt.Errorf("no manifest: %w", err)
	}
	if crc32.Checksum(e.Manifest, castagnoli) != e.CRC32C {
		return Manifest{}, errors.New("its content is not what its checksum says")
	}
	var m Manifest
	if err := json.Unmarshal(e.Manifest, &m); err != nil {
		return Manifest{}, fmt.Errorf("no manifest inside: %w", err)
	}
	if m.Version != version {
		return Manifest{}, fmt.Errorf("its version is %d, this program knows %d", m.Version, version)
	}
	if !validID.MatchString(m.ID) {
		return Manifest{}, fmt.Errorf("%q is no id", m.ID)
	}
	return m, checkFiles(m.Kind, m.Files)
}

func checkFiles(kind Kind, files []File) error {
	if len(files) == 0 {
		return errors.New("it names no files")
	}
	seen := make(map[string]bool, len(files))
	for _, f := range files {
		switch {
		case f.Name == "" || f.Name == "." || f.Name == ".." || filepath.Base(f.Name) != f.Name:
			return fmt.Errorf("%q is no name of a file in it", f.Name)
		case seen[f.Name]:
			return fmt.Errorf("it names %s twice", f.Name)
		case f.Size < 0 || kind.lasts() && int64(len(f.CRC32C)) != pieces(f.Size):
			return fmt.Errorf("%s has %d checksums for %d bytes", f.Name, len(f.CRC32C), f.Size)
		}
		seen[f.Name] = true
	}
	return nil
}

// readManifest reads the manifest of the snapshot in dir, whose name is its id.
func readManifest(dir string) (Manifest, error) {
	file, err := os.Open(filepath.Join(dir, manifestName))
	if err != nil {
		return Manifest{}, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxManifest+1))
	if err != nil {
		return Manifest{}, err
	}
	if len(data) > maxManifest {
		return Manifest{}, fmt.Errorf("it is larger than %d bytes", maxManifest)
	}
	m, err := decode(data)
	if err == nil && m.ID != filepath.Base(dir) {
		err = fmt.Errorf("it is that of %s", m.ID)
	}
	return m, err
}

// validID is what names a snapshot: safe as the name of a directory, and never hidden.
var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
