package network

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
)

const (
	ownerFilePrefix = "owner-" // then the instance
	lockFile        = "lock"

	// lockRetry is how often a sweep looks whether another instance's has ended.
	lockRetry = 5 * time.Millisecond
)

// owner is what a lease says of the instance that holds it.
type owner struct {
	Instance string `json:"instance"`
	DataDir  string `json:"data_dir"`
}

// alive reports whether the instance may still come back for what it holds. Only a data
// directory that is surely gone ends it; one that cannot be looked at does not.
func (o owner) alive() bool {
	_, err := os.Stat(o.DataDir)
	return !errors.Is(err, fs.ErrNotExist)
}

// lease is one taking of a slot.
type lease struct {
	owner
	// ID tells this taking of the slot from every other. A lease that an earlier version
	// wrote has none.
	ID string `json:"lease,omitempty"`
	// ParkedAt is when the slot was taken down for a guest that may come back, or zero.
	ParkedAt time.Time `json:"parked_at,omitzero"`
}

func newLeaseID() string { return rand.Text() }

// of reports whether the lease is the one under which slot was handed out.
func (l lease) of(slot Slot) bool { return l.ID == "" || slot.Lease == "" || l.ID == slot.Lease }

// leases is the register of slots on this machine: the directory holds, per instance, a
// file owner-<instance>, and per slot in use a file named by its index. A lease comes
// into being in one step, whole, or fails because the slot is taken. All methods are safe
// for concurrent use, by processes too.
type leases struct {
	dir   string
	owner owner
}

func (l leases) ownerPath(instance string) string {
	return filepath.Join(l.dir, ownerFilePrefix+instance)
}

func (l leases) path(index int) string { return filepath.Join(l.dir, strconv.Itoa(index)) }

// register writes the owner's file.
func (l leases) register() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	content, err := json.Marshal(l.owner)
	if err != nil {
		return err
	}
	return atomicfile.Write(l.ownerPath(l.owner.Instance), content, 0o644)
}

// unregister removes the owner's file. Leases, if any, stay valid.
func (l leases) unregister() error { return removeFile(l.ownerPath(l.owner.Instance)) }

// claim takes the lease of index and reports whether it was free, and if so the new
// lease's id.
func (l leases) claim(index int) (id string, claimed bool, err error) {
	if _, err := os.Lstat(l.path(index)); err == nil {
		return "", false, nil
	}
	id = newLeaseID()
	content, err := json.Marshal(lease{owner: l.owner, ID: id})
	if err != nil {
		return "", false, err
	}
	err = l.create(l.path(index), content)
	if errors.Is(err, fs.ErrNotExist) {
		// Someone cleaned the register away under us.
		if err = l.register(); err == nil {
			err = l.create(l.path(index), content)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return "", false, nil
	}
	return id, err == nil, err
}

// create makes a file with its content in one step, unless there is one. It has no name
// before it is whole, so that a crash leaves nothing.
func (l leases) create(path string, content []byte) error {
	fd, err := unix.Open(l.dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &fs.PathError{Op: "create a file in", Path: l.dir, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if _, err := file.Write(content); err != nil {
		return err
	}
	unnamed := "/proc/self/fd/" + strconv.Itoa(fd)
	if err := unix.Linkat(unix.AT_FDCWD, unnamed, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: unnamed, New: path, Err: err}
	}
	return nil
}

// rewrite replaces the lease of index, which this instance holds.
func (l leases) rewrite(index int, changed lease) error {
	changed.owner = l.owner
	content, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	return atomicfile.Write(l.path(index), content, 0o644)
}

// drop gives index back. The caller holds the lease.
func (l leases) drop(index int) error { return removeFile(l.path(index)) }

// get returns the lease of index; the error is fs.ErrNotExist if nobody holds it.
func (l leases) get(index int) (lease, error) { return readLease(l.path(index)) }

// mine returns the lease of index and whether it is this instance's.
func (l leases) mine(index int) (lease, bool, error) {
	found, err := l.get(index)
	if errors.Is(err, fs.ErrNotExist) {
		return lease{}, false, nil
	}
	return found, err == nil && found.Instance == l.owner.Instance, err
}

// all returns every lease of the machine. Files that are no lease, or no longer there,
// are left out.
func (l leases) all() (map[int]lease, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	found := make(map[int]lease)
	for _, entry := range entries {
		index, err := strconv.Atoi(entry.Name())
		if err != nil || index < 0 || strconv.Itoa(index) != entry.Name() {
			continue
		}
		if held, err := l.get(index); err == nil {
			found[index] = held
		}
	}
	return found, nil
}

// ours returns the leases that this instance holds.
func (l leases) ours() (map[int]lease, error) {
	all, err := l.all()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(_ int, held lease) bool { return held.Instance != l.owner.Instance })
	return all, nil
}

// deadOwners returns the registered instances whose data directory is gone.
func (l leases) deadOwners() ([]owner, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	var dead []owner
	for _, entry := range entries {
		instance, ok := strings.CutPrefix(entry.Name(), ownerFilePrefix)
		if !ok || !instancePattern.MatchString(instance) || instance == l.owner.Instance {
			continue
		}
		if found, err := readLease(l.ownerPath(instance)); err == nil && found.Instance == instance && !found.alive() {
			dead = append(dead, found.owner)
		}
	}
	return dead, nil
}

// exclusively runs f while no other instance is in its exclusively.
func (l leases) exclusively(ctx context.Context, f func() error) (err error) {
	file, err := os.OpenFile(filepath.Join(l.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// readLease reads a lease, or an owner's file, which is one without an id.
func readLease(path string) (lease, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return lease{}, err
	}
	var found lease
	if err := json.Unmarshal(content, &found); err != nil {
		return lease{}, fmt.Errorf("lease %s: %w", path, err)
	}
	if found.Instance == "" || found.DataDir == "" {
		return lease{}, fmt.Errorf("lease %s: names no owner", path)
	}
	return found, nil
}

// removeFile is os.Remove for a file that may be gone already.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
