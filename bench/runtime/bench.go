package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/gvisor"
)

const (
	mountPoint = "/run/wrenn/bin"
	token      = "bench"
	readyWait  = 20 * time.Second
	memoryMB   = 512
	diskMB     = 512
	processes  = 128
)

// bench is a driver with all that it needs, and one slot for the sandbox to measure.
type bench struct {
	driver  *gvisor.Driver
	network *network.Network
	slot    network.Slot
	image   string
	binary  string
	envdDir string
	runDir  string
	scratch string
	// bundleCopy is what the sandbox consists of besides a checkpoint.
	bundleCopy string
	dirs       int
}

func newBench(ctx context.Context, o options) (b *bench, err error) {
	b = &bench{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.scratch, err = os.MkdirTemp(o.scratch, "wrenn-bench-"); err != nil {
		return b, err
	}
	if b.runDir, err = os.MkdirTemp("/run", "wrenn-bench-"); err != nil {
		return b, err
	}
	b.bundleCopy = filepath.Join(b.scratch, "bundle")
	if b.binary, err = filepath.Abs(filepath.Join(o.bin, "runsc")); err != nil {
		return b, err
	}
	log := slog.New(slog.DiscardHandler)
	b.driver, err = gvisor.New(gvisor.Config{
		Binary: b.binary, ProgramsDir: filepath.Join(b.scratch, "runtimes"), RunDir: b.runDir,
		OverlayDir: filepath.Join(b.scratch, "overlays"), CgroupParent: filepath.Base(b.runDir), Log: log,
	})
	if err != nil {
		return b, err
	}
	images, err := image.Open(o.images)
	if err != nil {
		return b, err
	}
	base, err := images.EnsureBase(ctx, func(image.Progress) {})
	if err != nil {
		return b, err
	}
	b.image = base.Path
	b.envdDir = filepath.Join(b.scratch, "guest")
	if err := os.Mkdir(b.envdDir, 0o755); err != nil {
		return b, err
	}
	envd, err := os.ReadFile(filepath.Join(o.bin, "envd"))
	if err != nil {
		return b, err
	}
	if err := os.WriteFile(filepath.Join(b.envdDir, "envd"), envd, 0o755); err != nil {
		return b, err
	}
	instance := fmt.Sprintf("%08x", os.Getpid())
	if b.network, err = network.Open(ctx, network.Config{Instance: instance, DataDir: b.scratch, Log: log}); err != nil {
		return b, err
	}
	b.slot, err = b.network.Acquire(ctx)
	return b, err
}

// close ends every sandbox and leaves nothing. It works on a bench that was made in part.
func (b *bench) close() (err error) {
	ctx := context.Background()
	if b.driver != nil {
		ids, listErr := b.driver.List(ctx)
		for _, id := range ids {
			err = errors.Join(err, b.driver.Destroy(ctx, id))
		}
		err = errors.Join(err, listErr, b.driver.Close())
	}
	if b.network != nil {
		err = errors.Join(err, b.network.Sweep(ctx, nil), b.network.Close())
	}
	for _, dir := range []string{b.runDir, b.scratch} {
		if dir != "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// newDir makes a directory for a checkpoint.
func (b *bench) newDir() (string, error) {
	b.dirs++
	dir := filepath.Join(b.scratch, fmt.Sprintf("checkpoint%d", b.dirs))
	return dir, os.Mkdir(dir, 0o700)
}

// start boots a sandbox with the driver, or restores it from a checkpoint.
func (b *bench) start(ctx context.Context, id string, slot network.Slot, checkpoint string) error {
	return b.driver.Start(ctx, runtime.Spec{
		ID: id, Hostname: id, RootFS: b.image, Args: []string{mountPoint + "/envd"},
		Env:       []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Mounts:    []runtime.Mount{{Source: b.envdDir, Target: mountPoint}},
		Namespace: slot.Namespace, Checkpoint: checkpoint,
		Limits: runtime.Limits{VCPUs: 2, MemoryMB: memoryMB, DiskMB: diskMB, Processes: processes},
	})
}

func (b *bench) guest(slot network.Slot) *guestclient.Client {
	return guestclient.New(&net.TCPAddr{IP: slot.Guest.Addr().AsSlice(), Port: guestclient.Port}, token)
}

// ready waits until the guest answers on a connection of its own.
func (b *bench) ready(ctx context.Context, slot network.Slot) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	guest := b.guest(slot)
	defer guest.Close()
	return guest.WaitReady(ctx)
}

// runsc runs a command of the bare runsc with the driver's flags; a restore wants them
// to be the same.
func (b *bench) runsc(ctx context.Context, args ...string) error {
	flags := []string{
		"--root=" + filepath.Join(b.runDir, "gvisor"), "--network=sandbox",
		"--overlay2=root:dir=" + filepath.Join(b.runDir, "overlays"), "--allow-suid", "--in-sandbox-cgroup=v2",
		"--allow-connected-on-save", "--sidecar-usage-policy=DEFAULT",
		"--log=" + filepath.Join(b.scratch, "runsc.log"), "--log-format=text",
	}
	cmd := exec.CommandContext(ctx, b.binary, append(flags, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(filepath.Join(b.scratch, "runsc.log"))
		return fmt.Errorf("runsc %s: %w: %s", args[0], err, bytes.TrimSpace(text))
	}
	return nil
}
