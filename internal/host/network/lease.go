package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// leases is the register of slots on this machine: the directory holds, per instance, a
// file owner-<instance>, and per slot in use a file named by its index. A lease is a hard
// link to its owner's file, so that it comes into being in one step, whole, or fails
// because the slot is taken. All methods are safe for concurrent use, by processes too.
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

// claim takes the lease of index and reports whether it was free.
func (l leases) claim(index int) (bool, error) {
	err := os.Link(l.ownerPath(l.owner.Instance), l.path(index))
	if errors.Is(err, fs.ErrNotExist) {
		// Someone cleaned the register away under us.
		if err = l.register(); err == nil {
			err = os.Link(l.ownerPath(l.owner.Instance), l.path(index))
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// drop gives index back. The caller holds the lease.
func (l leases) drop(index int) error { return removeFile(l.path(index)) }

// holder returns who holds index; the error is fs.ErrNotExist if nobody does.
func (l leases) holder(index int) (owner, error) { return readOwner(l.path(index)) }

// mine reports whether this instance holds index.
func (l leases) mine(index int) (bool, error) {
	holder, err := l.holder(index)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && holder.Instance == l.owner.Instance, err
}

// all returns every lease of the machine. Files that are no lease, or no longer there,
// are left out.
func (l leases) all() (map[int]owner, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	found := make(map[int]owner)
	for _, entry := range entries {
		index, err := strconv.Atoi(entry.Name())
		if err != nil || index < 0 || strconv.Itoa(index) != entry.Name() {
			continue
		}
		if holder, err := l.holder(index); err == nil {
			found[index] = holder
		}
	}
	return found, nil
}

// ours returns the indexes that this instance holds.
func (l leases) ours() ([]int, error) {
	all, err := l.all()
	if err != nil {
		return nil, err
	}
	var indexes []int
	for index, holder := range all {
		if holder.Instance == l.owner.Instance {
			indexes = append(indexes, index)
		}
	}
	return indexes, nil
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
		if o, err := readOwner(l.ownerPath(instance)); err == nil && o.Instance == instance && !o.alive() {
			dead = append(dead, o)
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

func readOwner(path string) (owner, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return owner{}, err
	}
	var o owner
	if err := json.Unmarshal(content, &o); err != nil {
		return owner{}, fmt.Errorf("lease %s: %w", path, err)
	}
	if o.Instance == "" || o.DataDir == "" {
		return owner{}, fmt.Errorf("lease %s: names no owner", path)
	}
	return o, nil
}

// removeFile is os.Remove for a file that may be gone already.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
