package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideVariable tells this program that it is in its namespaces already.
const insideVariable = "WRENN_BENCH_INSIDE"

// scratch is where the measured daemons and this program write: memory, mounted over what
// the machine has there.
const scratch = "/dev/shm"

func isolated() bool { return os.Getenv(insideVariable) != "" }

// isolate runs this program again, in namespaces of its own, and waits for it. It is the
// first process of its PID namespace there, so everything that it starts ends with it.
func isolate(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it makes namespaces: run it as root")
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// prepare covers what the measured programs might write to, brings loopback up, and returns
// a directory in memory.
func prepare() (string, error) {
	for _, mount := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{"tmpfs", "/var/log", "tmpfs", 0}, // sshd notes who logs in
		{"tmpfs", scratch, "tmpfs", 0},
	} {
		if err := unix.Mount(mount.source, mount.target, mount.kind, mount.flags, ""); err != nil {
			return "", fmt.Errorf("mount %s: %w", mount.target, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return "", err
	}
	return scratch, netlink.LinkSetUp(lo)
}
