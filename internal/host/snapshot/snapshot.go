// Package snapshot keeps what a runtime wrote down of sandboxes: directories of files that
// are there whole or not at all, with checksums, whatever is killed or loses power in
// between. It must not know how the files are made or read, or which sandbox needs which.
package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// A snapshot is a directory named as its id:
//
//	<id>/manifest.json  what it is of, with checksums
//	<id>/state/         the runtime's files
//	<id>/removed        only there when it was removed while somebody used it
//
// Drafts and what is being removed lie beside, under names that begin with a dot.
const (
	manifestName  = "manifest.json"
	stateName     = "state"
	removedName   = "removed"
	draftPrefix   = ".draft-"
	removedPrefix = ".removed-"
	dirMode       = 0o700
	fileMode      = 0o600
)

// Snapshot is what the store knows of one.
type Snapshot struct {
	Manifest
	// Bytes is what it takes on the disk, which is less than its files are long when they
	// have holes.
	Bytes int64
	// Damaged says why the snapshot cannot be used; empty when nothing speaks against it.
	// Of a damaged one only the id and the size are known.
	Damaged string
	// Differs says what the latest Verify found that was not as it was written; empty when it
	// found nothing, or there was none. The next one may find it mended.
	Differs string
}

// Store is a directory of snapshots. It belongs to one process. Its methods are safe for
// concurrent use.
type Store struct {
	dir  string
	log  *slog.Logger
	sums sums

	mu     sync.Mutex
	kept   map[string]*kept
	drafts map[string]*Draft
}

// kept is one snapshot of the store.
type kept struct {
	snapshot Snapshot
	users    int
	removed  bool // goes when the last user has released it, and is not seen any more
}

// Open returns the store in dir, which is made when it is not there. It finishes what a
// killed process left: drafts and removed snapshots go. A snapshot whose manifest cannot be
// read is listed as damaged; it may be all that is left of somebody's work.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("make the directory of snapshots: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	s := &Store{dir: dir, log: log, sums: newSums(), kept: map[string]*kept{}, drafts: map[string]*Draft{}}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), draftPrefix) || strings.HasPrefix(e.Name(), removedPrefix):
			if err := os.RemoveAll(path); err != nil {
				log.Warn("cannot remove what is left of a snapshot", "path", path, "error", err)
			}
		case !e.IsDir() || !validID.MatchString(e.Name()):
			log.Warn("something that is no snapshot lies among them", "path", path)
		default:
			s.load(e.Name())
		}
	}
	return s, nil
}

// load takes in one snapshot that lies on the disk. What is wrong with it is no reason not
// to have the others.
func (s *Store) load(id string) {
	path := s.path(id)
	snap := Snapshot{Manifest: Manifest{ID: id}}
	damaged := func(why string, err error) {
		snap.Damaged = why
		s.log.Warn("a snapshot is damaged", "snapshot", id, "error", err)
	}
	_, err := os.Lstat(filepath.Join(path, removedName))
	if err == nil {
		if err := s.discard(path); err != nil {
			s.log.Warn("cannot remove what is left of a snapshot", "path", path, "error", err)
		}
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		damaged("its directory cannot be read", err)
	} else if m, err := readManifest(path); err != nil {
		damaged("its manifest cannot be used", err)
	} else {
		snap.Manifest = m
	}
	if snap.Bytes, err = diskUsage(path); err != nil {
		damaged("its directory cannot be read", err)
	}
	s.kept[id] = &kept{snapshot: snap}
}

func (s *Store) path(id string) string { return filepath.Join(s.dir, id) }

// Get returns a snapshot; fault.NotFound when there is none.
func (s *Store) Get(id string) (Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(id)
	if err != nil {
		return Snapshot{}, err
	}
	return k.snapshot, nil
}

// find returns a snapshot that is not removed. s.mu is held.
func (s *Store) find(id string) (*kept, error) {
	k := s.kept[id]
	if k == nil || k.removed {
		return nil, fault.New(fault.NotFound, "there is no snapshot %s", id)
	}
	return k, nil
}

// List returns all snapshots, the damaged ones too, in the order of their ids.
func (s *Store) List() []Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Snapshot
	for _, k := range s.kept {
		if !k.removed {
			all = append(all, k.snapshot)
		}
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Use returns the directory with the runtime's files, which stays until release is called.
// A Remove meanwhile takes effect with the last release. Release may be called again, to no
// effect.
func (s *Store) Use(id string) (dir string, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(id)
	if err != nil {
		return "", nil, err
	}
	if k.snapshot.Damaged != "" {
		return "", nil, damaged(id, "%s", k.snapshot.Damaged)
	}
	k.users++
	release = sync.OnceFunc(func() {
		if err := s.release(id, k); err != nil {
			s.log.Warn("cannot remove a snapshot", "snapshot", id, "error", err)
		}
	})
	return filepath.Join(s.path(id), stateName), release, nil
}

func (s *Store) release(id string, k *kept) error {
	s.mu.Lock()
	k.users--
	if !k.removed || k.users > 0 {
		s.mu.Unlock()
		return nil
	}
	return s.drop(id)
}

// Remove removes a snapshot; fault.NotFound when there is none. One that is used is not
// seen any more at once, and its files go with the last user's release.
func (s *Store) Remove(id string) error {
	s.mu.Lock()
	k, err := s.find(id)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	if k.users == 0 {
		return s.drop(id)
	}
	defer s.mu.Unlock()
	k.removed = true
	// Should this process die before the last release, the next one finishes the removal.
	// A full disk may have no room for that mark, and must not keep the removal from it.
	if err := os.WriteFile(filepath.Join(s.path(id), removedName), nil, fileMode); err != nil {
		s.log.Warn("cannot mark a snapshot as removed", "snapshot", id, "error", err)
	}
	return nil
}

// drop removes a snapshot that nobody uses. It is called with s.mu held and gives it back.
func (s *Store) drop(id string) error {
	trash, err := s.putAside(s.path(id))
	if err == nil {
		delete(s.kept, id)
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return os.RemoveAll(trash)
}

// discard removes a directory so that nothing half is seen under its name.
func (s *Store) discard(path string) error {
	trash, err := s.putAside(path)
	if err != nil {
		return err
	}
	return os.RemoveAll(trash)
}

// putAside gives a directory a name under which Open removes it. That takes no room: on a
// full disk removing is what helps.
func (s *Store) putAside(path string) (string, error) {
	trash := filepath.Join(s.dir, fmt.Sprintf("%s%s-%016x", removedPrefix, filepath.Base(path), rand.Uint64()))
	return trash, os.Rename(path, trash)
}

// Retain removes every snapshot that keep does not want.
func (s *Store) Retain(keep func(Snapshot) bool) error {
	var errs []error
	for _, snap := range s.List() {
		if keep(snap) {
			continue
		}
		s.log.Info("remove a snapshot that nobody needs", "snapshot", snap.ID, "bytes", snap.Bytes)
		if err := s.Remove(snap.ID); err != nil && !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// diskUsage is what a directory and all in it take on the disk, in bytes.
func diskUsage(dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		const blockSize = 512 // of st_blocks, whatever the file system's is
		total += info.Sys().(*syscall.Stat_t).Blocks * blockSize
		return nil
	})
	return total, err
}
