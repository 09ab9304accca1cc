package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

var _ runtime.Meter = (*Driver)(nil)

// Usage returns what a sandbox uses, from the host's kernel alone: no guest is asked.
func (d *Driver) Usage(_ context.Context, id string) (runtime.Usage, error) {
	disk, err := d.overlays.size(d, id)
	if err != nil {
		return runtime.Usage{}, usageError(id, err)
	}
	cpu, err := d.cgroups.cpuTime(id)
	if err != nil {
		return runtime.Usage{}, usageError(id, err)
	}
	memory, err := d.cgroups.memory(id)
	if err != nil {
		return runtime.Usage{}, usageError(id, err)
	}
	return runtime.Usage{CPU: cpu, MemoryBytes: memory, DiskBytes: disk}, nil
}

// usageError tells a sandbox that has ended, meanwhile or long ago, from what is wrong.
func usageError(id string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) {
		return fault.Wrap(err, fault.NotFound, "sandbox %s does not run", id)
	}
	return fmt.Errorf("measure %s: %w", id, err)
}

// overlayFile is the file that a sentry keeps a guest's written data in. It has no name
// any more, so it is reached through the sentry's descriptor.
type overlayFile struct {
	path     string // /proc/<sentry>/fd/<n>
	dev, ino uint64
}

// overlays remembers where the sandboxes' overlay files are. It is a cache: each entry is
// verified before it is used. The zero value is ready, and safe for concurrent use.
type overlays struct {
	mu    sync.Mutex
	files map[string]overlayFile
}

// size returns how much of the disk a sandbox's file takes, in bytes; fs.ErrNotExist when
// the sandbox does not run.
func (o *overlays) size(d *Driver, id string) (uint64, error) {
	o.mu.Lock()
	file, known := o.files[id]
	o.mu.Unlock()
	if known {
		if st, err := statFile(file.path); err == nil && st.Dev == file.dev && st.Ino == file.ino {
			return diskBytes(st), nil
		}
		o.forget(id)
	}
	path, st, err := d.findOverlay(id)
	if err != nil {
		return 0, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.files == nil {
		o.files = map[string]overlayFile{}
	}
	o.files[id] = overlayFile{path: path, dev: st.Dev, ino: st.Ino}
	return diskBytes(st), nil
}

func (o *overlays) forget(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.files, id)
}

// findOverlay looks through the descriptors of a sandbox's sentry for the file without a
// name that lives in the directory of overlays.
func (d *Driver) findOverlay(id string) (path string, st unix.Stat_t, err error) {
	pid, err := d.sentryPID(id)
	if err != nil {
		return "", st, err
	}
	dir, err := filepath.EvalSymlinks(d.cfg.OverlayDir)
	if err != nil {
		return "", st, err
	}
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		return "", st, err
	}
	if !d.isOurs(pid) {
		return "", st, fs.ErrNotExist
	}
	for _, e := range entries {
		path = filepath.Join(fds, e.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(target, dir+"/") {
			continue
		}
		if st, err = statFile(path); err == nil && st.Nlink == 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return path, st, nil
		}
	}
	return "", st, fmt.Errorf("process %d has no file in %s", pid, dir)
}

func statFile(path string) (st unix.Stat_t, err error) {
	err = unix.Stat(path, &st)
	return st, err
}

func diskBytes(st unix.Stat_t) uint64 {
	const sector = 512 // the unit of st_blocks, whatever the file system's
	return uint64(st.Blocks) * sector
}
