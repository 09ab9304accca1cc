package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// detached puts a runsc command into a session of its own.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// Wait blocks until the sandbox's sentry has ended.
func (d *Driver) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	pid, err := d.sentryPID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return runtime.Exit{}, nil
	}
	if err != nil {
		return runtime.Exit{}, fmt.Errorf("read sentry's pid: %w", err)
	}
	if err := waitProcess(ctx, pid, func() bool { return d.isOurs(pid) }); err != nil {
		return runtime.Exit{}, err
	}
	return runtime.Exit{OutOfMemory: d.cgroups.outOfMemory(id), OutOfTasks: d.cgroups.outOfTasks(id)}, nil
}

func (d *Driver) sentryPID(id string) (int, error) {
	data, err := os.ReadFile(d.pidFile(id))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// isOurs reports whether a process was started by this driver, so that a pid that the
// kernel has given to another program is never taken for a sentry.
func (d *Driver) isOurs(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	for arg := range strings.SplitSeq(string(cmdline), "\x00") {
		if arg == "--root="+d.stateDir() {
			return true
		}
	}
	return false
}

// exiting is the flag of a process that the kernel is taking apart.
const exiting = 0x4

// dying says whether a process is on its way out: of its memory, in which its command line
// is, the kernel has disposed before its files and connections.
func dying(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// Behind the name: state, parent, group, session, terminal, its group, flags.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const flagsField = 6
	if len(fields) <= flagsField {
		return false
	}
	flags, err := strconv.ParseUint(fields[flagsField], 10, 64)
	return err == nil && flags&exiting != 0
}

// waitProcess waits until a process that is not our child ends. stillIt is asked once
// the process is pinned, and says whether it is the one that was meant.
func waitProcess(ctx context.Context, pid int, stillIt func() bool) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	// A non-blocking pidfd in an os.File waits in the runtime's poller, not in a thread.
	file := os.NewFile(uintptr(fd), "pidfd")
	defer file.Close()
	if !stillIt() && !dying(pid) {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Destroy ends a sandbox and removes what runsc and the driver made for it. It does not
// ask runsc: `runsc delete` talks to the sentry, which may not answer any more, knows
// nothing of what a crash has left half made, and does nothing besides.
func (d *Driver) Destroy(ctx context.Context, id string) error {
	defer d.meters.forget(id)
	if err := d.killAll(ctx, id); err != nil {
		return err
	}
	for _, file := range []string{id + "_sandbox:" + id + ".state", id + "_sandbox:" + id + ".lock", "runsc-" + id + ".sock"} {
		if err := os.RemoveAll(filepath.Join(d.stateDir(), file)); err != nil {
			return err
		}
	}
	return os.RemoveAll(d.bundle(id))
}

// killPoll is how often killAll looks whether the killed processes are gone.
const killPoll = 2 * time.Millisecond

// killAll kills the sandbox's processes until none is left, those in its cgroup, and then
// runsc processes that have not entered it yet; and removes the cgroup.
func (d *Driver) killAll(ctx context.Context, id string) error {
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for {
		left := d.cgroups.kill(id)
		if left == 0 {
			pids, err := d.runscProcesses(id)
			if err != nil {
				return err
			}
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			left = len(pids)
		}
		if left == 0 {
			err := d.cgroups.remove(id)
			if err == nil {
				return nil
			}
			if !errors.Is(err, unix.EBUSY) { // a process is on its way out
				return fmt.Errorf("remove cgroup: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of sandbox %s do not end: %w", left, id, ctx.Err())
		case <-tick.C:
		}
	}
}

// runscProcesses returns the runsc processes that name the sandbox: commands in flight,
// sentry and gofer. Zombies do not count: they hold nothing but their number.
func (d *Driver) runscProcesses(id string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A zombie's command line reads as empty.
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		root, named := false, false
		for _, a := range args {
			root = root || a == "--root="+d.stateDir()
			named = named || a == id || strings.HasSuffix(a, "/"+id)
		}
		if root && named {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// nullNetns is a mount that runsc makes in its state directory and never takes away.
const nullNetns = "null-netns"

// Close gives back what the driver holds. It removes its directories, mount and cgroup
// when no sandbox is left in them; it leaves those of living sandboxes alone.
func (d *Driver) Close() error {
	d.meters.close()
	d.memory.close()
	ids, err := d.List(context.Background())
	if err != nil || len(ids) > 0 {
		return err
	}
	d.cgroups.removeParent()
	mount := filepath.Join(d.stateDir(), nullNetns)
	// Two commands that raced have mounted it twice. EINVAL: it is no mount any more.
	for err = nil; err == nil; {
		err = unix.Unmount(mount, unix.MNT_DETACH)
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", mount, err)
	}
	return errors.Join(os.RemoveAll(d.stateDir()), os.RemoveAll(d.bundlesDir()), os.RemoveAll(d.rootfsDir()), os.RemoveAll(d.overlayLink()))
}
