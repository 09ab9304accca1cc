package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where the machine's cgroups are.
const cgroupRoot = "/sys/fs/cgroup"

// cgroups is the place of our sandboxes in the machine's cgroup hierarchies: one under
// cgroup v2, one for each controller under v1. runsc makes and fills the cgroups; this
// reads them, and removes what runsc could not.
type cgroups struct {
	root   string
	parent string
	// hierarchies are the mount points that hold parent.
	hierarchies []string
	v2          bool
}

func findCgroups(root, parent string) (cgroups, error) {
	c := cgroups{root: root, parent: parent}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		c.hierarchies, c.v2 = []string{root}, true
		return c, nil
	}
	for _, needed := range []string{"memory", "cpu", "cpuacct", "pids"} {
		if _, err := os.Stat(filepath.Join(root, needed)); err != nil {
			return c, fmt.Errorf("cgroup controller %q is not mounted under %s; sandboxes cannot be limited without it", needed, root)
		}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return c, err
	}
	for _, e := range entries {
		if e.IsDir() {
			c.hierarchies = append(c.hierarchies, filepath.Join(root, e.Name()))
		}
	}
	return c, nil
}

// path is the sandbox's cgroup as an OCI cgroupsPath.
func (c cgroups) path(id string) string { return "/" + c.parent + "/" + id }

// children returns the ids that have a cgroup, each at least once.
func (c cgroups) children() []string {
	var ids []string
	for _, h := range c.hierarchies {
		entries, err := os.ReadDir(filepath.Join(h, c.parent))
		if err != nil {
			continue // ErrNotExist: not made yet, or not by runsc in this hierarchy
		}
		for _, e := range entries {
			if e.IsDir() {
				ids = append(ids, e.Name())
			}
		}
	}
	return ids
}

// kill sends SIGKILL to every process in the sandbox's cgroup and returns how many
// there were.
func (c cgroups) kill(id string) int {
	killed := map[int]bool{}
	for _, h := range c.hierarchies {
		data, err := os.ReadFile(filepath.Join(h, c.parent, id, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, line := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 1 && !killed[pid] {
				killed[pid] = true
				_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by now
			}
		}
	}
	return len(killed)
}

// remove removes the sandbox's cgroup, which must be empty of processes, from every
// hierarchy.
func (c cgroups) remove(id string) error {
	var errs []error
	for _, h := range c.hierarchies {
		if err := removeTree(filepath.Join(h, c.parent, id)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeParent removes the cgroup that held all sandboxes, when none is left.
func (c cgroups) removeParent() {
	for _, h := range c.hierarchies {
		_ = os.Remove(filepath.Join(h, c.parent)) // not empty, or not there: both fine
	}
}

// removeTree removes a cgroup and those below it. Cgroup directories hold files that
// cannot be removed, so os.RemoveAll does not work.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// limitCPU gives a sandbox that has started the quota of so many processors.
func (c cgroups) limitCPU(id string, vcpus int) error {
	dir, file, text := "cpu", "cpu.cfs_quota_us", strconv.FormatInt(cpuQuota(vcpus), 10)
	if c.v2 {
		dir, file, text = "", "cpu.max", fmt.Sprintf("%s %d", text, cpuPeriodMicros)
	}
	return os.WriteFile(filepath.Join(cgroupRoot, dir, c.parent, id, file), []byte(text), 0)
}

// outOfMemory reports whether the kernel has killed a process of the sandbox for
// memory. It must be asked before the cgroup is removed.
func (c cgroups) outOfMemory(id string) bool {
	if c.v2 {
		return c.happened("memory", id, "memory.events", "oom_kill")
	}
	return c.happened("memory", id, "memory.oom_control", "oom_kill")
}

// outOfTasks reports whether the kernel has refused the sandbox another task, which the
// sentry does not survive. It must be asked before the cgroup is removed.
func (c cgroups) outOfTasks(id string) bool {
	return c.happened("pids", id, "pids.events", "max")
}

// happened reports whether a counter in one of the sandbox's files of events is not zero.
func (c cgroups) happened(controller, id, file, counter string) bool {
	counts, err := c.counters(controller, id, file, counter)
	return err == nil && counts[0] > 0
}

// counters returns counters from one of the sandbox's files, which has a name and a
// number in each line; 0 for one that is not there.
func (c cgroups) counters(controller, id, file string, names ...string) ([]uint64, error) {
	data, err := os.ReadFile(c.file(controller, id, file))
	if err != nil {
		return nil, err
	}
	return parseCounters(string(data), names)
}

func parseCounters(text string, names []string) ([]uint64, error) {
	counts := make([]uint64, len(names))
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		i := slices.Index(names, name)
		if i < 0 {
			continue
		}
		var err error
		if counts[i], err = strconv.ParseUint(value, 10, 64); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

// file returns the path of one of the sandbox's files; under v2 all are in one place.
func (c cgroups) file(controller, id, file string) string {
	if c.v2 {
		controller = ""
	}
	return filepath.Join(c.root, controller, c.parent, id, file)
}
