package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

var _ runtime.Meter = (*Driver)(nil)

// Usage returns what a sandbox uses, nearly all from the host's kernel: no guest is asked, and
// its sentry only for the number of its processes, when that may have changed.
func (d *Driver) Usage(_ context.Context, id string) (used runtime.Usage, err error) {
	m, known := d.meters.get(id)
	if known {
		if used, err = d.measure(id, m); err == nil {
			return used, nil
		}
		d.meters.forget(id) // it has ended, and may have been started again
	}
	if m, err = d.newMeter(id); err != nil {
		return runtime.Usage{}, usageError(id, err)
	}
	if used, err = d.measure(id, m); err != nil {
		m.cgroup.close()
		return runtime.Usage{}, usageError(id, err)
	}
	d.meters.put(id, m)
	return used, nil
}

// usageError tells a sandbox that has ended, meanwhile or long ago, from what is wrong.
func usageError(id string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrClosed) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) {
		return fault.Wrap(err, fault.NotFound, "sandbox %s does not run", id)
	}
	return fmt.Errorf("measure %s: %w", id, err)
}

func (d *Driver) measure(id string, m *meter) (used runtime.Usage, err error) {
	if used, err = m.read(); err != nil {
		return used, err
	}
	used.MemoryLimitBytes = m.memoryLimit
	guest := m.tasks.count(used.CPU, func() (tasks, error) { return d.guestTasks(id) }, &d.meters.asking)
	used.Processes, used.ProcessLimit = guest.now, guest.limit
	return used, nil
}

// meter is where one run of a sandbox is measured.
type meter struct {
	cgroup *cgroupGauge
	// memoryLimit is the one that it stands under, in bytes, also while that is lifted.
	memoryLimit uint64
	tasks       taskCount
	// overlay is the file that a sentry keeps a guest's written data in. It has no name any
	// more, so it is reached through the sentry's descriptor: /proc/<sentry>/fd/<n>.
	overlay  string
	dev, ino uint64
}

func (d *Driver) newMeter(id string) (*meter, error) {
	overlay, st, err := d.findOverlay(id)
	if err != nil {
		return nil, err
	}
	limit, err := d.memoryLimit(id)
	if err != nil {
		return nil, err
	}
	cgroup, err := d.cgroups.gauge(id)
	if err != nil {
		return nil, err
	}
	return &meter{cgroup: cgroup, memoryLimit: limit, overlay: overlay, dev: st.Dev, ino: st.Ino}, nil
}

// memoryLimit returns the limit that a sandbox was started with.
func (d *Driver) memoryLimit(id string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(d.bundle(id), configFile))
	if err != nil {
		return 0, err
	}
	var config specs.Spec
	if err := json.Unmarshal(text, &config); err != nil {
		return 0, err
	}
	if config.Linux == nil || config.Linux.Resources == nil || config.Linux.Resources.Memory == nil || config.Linux.Resources.Memory.Limit == nil {
		return 0, errors.New("its bundle names no limit of memory")
	}
	return uint64(*config.Linux.Resources.Memory.Limit), nil
}

// read measures. When the sandbox has ended, it fails.
func (m *meter) read() (used runtime.Usage, err error) {
	st, err := statFile(m.overlay)
	if err != nil {
		return used, err
	}
	if st.Dev != m.dev || st.Ino != m.ino {
		return used, fs.ErrNotExist // the process is another one by now
	}
	const sector = 512 // the unit of st_blocks, whatever the file system's
	used.DiskBytes = uint64(st.Blocks) * sector
	if used.CPU, err = m.cgroup.cpuTime(); err != nil {
		return used, err
	}
	used.MemoryBytes, err = m.cgroup.memoryBytes()
	return used, err
}

// meters remembers where sandboxes are measured. It is a cache: a meter fails when it is
// not the right one any more. The zero value is ready, and safe for concurrent use.
type meters struct {
	// asking counts the questions to sentries under way.
	asking sync.WaitGroup

	mu     sync.Mutex
	meters map[string]*meter
}

func (ms *meters) get(id string) (*meter, bool) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m, known := ms.meters[id]
	return m, known
}

func (ms *meters) put(id string, m *meter) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.meters == nil {
		ms.meters = map[string]*meter{}
	}
	if before, two := ms.meters[id]; two { // somebody else measured at the same time
		before.cgroup.close()
	}
	ms.meters[id] = m
}

func (ms *meters) forget(id string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m, known := ms.meters[id]; known {
		m.cgroup.close()
		delete(ms.meters, id)
	}
}

// close gives all files back. Nobody measures any more.
func (ms *meters) close() {
	ms.asking.Wait()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.meters {
		m.cgroup.close()
	}
	ms.meters = nil
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
