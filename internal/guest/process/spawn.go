package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawner runs every fork of the program. Where a limit on the number of processes is
// set, children are born in the cgroup that sets it, so that there is no moment at which
// one is unlimited, while the daemon itself stays outside and so stays responsive while a
// fork bomb has used the limit up.
//
// It is safe for concurrent use. It lives from its constructor to close.
type spawner struct {
	// cgroup is a cgroup v2, which clone3(2) can put a child into; nil sets no limit.
	cgroup    *os.File
	closeOnce sync.Once
}

// forkExec is syscall.ForkExec into the right cgroup.
func (s *spawner) forkExec(path string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	if s.cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(s.cgroup.Fd())
	}
	return syscall.ForkExec(path, argv, attr)
}

// close gives back what the limit needed. Nothing may be forked afterwards.
func (s *spawner) close() {
	s.closeOnce.Do(func() {
		if s.cgroup != nil {
			_ = s.cgroup.Close()
		}
	})
}

// newLimitedSpawner returns a spawner of at most limit processes. It mounts the hierarchy
// of cgroups v2 at dir and makes one called name in it.
//
// Version 1 would not hold under gVisor: there each of its controllers has a hierarchy of
// its own, and a fork is charged to one of them by chance.
func newLimitedSpawner(dir, name string, limit int) (_ *spawner, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cgroup mount point: %w", err)
	}
	if err := unix.Mount("none", dir, "cgroup2", 0, ""); err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Unmount(dir, 0))
		}
	}()
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	if !slices.Contains(strings.Fields(string(controllers)), "pids") {
		return nil, errors.New("the pids controller is not in this hierarchy")
	}
	// Only a cgroup without processes of its own can limit those below it, so the daemon
	// moves out of the way first.
	daemon, group := filepath.Join(dir, name+".daemon"), filepath.Join(dir, name)
	for _, step := range []func() error{
		func() error { return mkdirIfMissing(daemon) },
		func() error { return setControl(daemon, "cgroup.procs", strconv.Itoa(os.Getpid())) },
		func() error { return setControl(dir, "cgroup.subtree_control", "+pids") },
		func() error { return mkdirIfMissing(group) },
		func() error { return setControl(group, "pids.max", strconv.Itoa(limit)) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	cgroup, err := os.Open(group)
	if err != nil {
		return nil, err
	}
	return &spawner{cgroup: cgroup}, nil
}

func mkdirIfMissing(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// setControl writes to a control file of a cgroup.
func setControl(group, file, value string) error {
	return os.WriteFile(filepath.Join(group, file), []byte(value), 0)
}
