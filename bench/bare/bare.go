// Package bare runs containers with nothing but runsc, as a peer that a benchmark measures
// beside. It must know nothing of Wrenn.
package bare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The limits of a sandbox that nobody asked anything of, so that the peer starts the same.
const (
	peerMemory     = (512 + 64) << 20 // bytes, with room for the sentry
	peerTasks      = 2048
	peerCPUPeriod  = 100_000 // microseconds
	peerDiskMB     = 10240
	peerOpenFiles  = 65536
	cgroupMemoryV1 = "/sys/fs/cgroup/memory%s/%s/memory.usage_in_bytes"
	cgroupMemoryV2 = "/sys/fs/cgroup%s/%s/memory.current"
)

// Cgroup is the parent of the containers' cgroups.
const Cgroup = "/wrenn-bench"

// Peer runs bare containers with runsc.
type Peer struct {
	runsc string
	dir   string
	image string
}

// New returns a Peer that uses the runsc in bin, keeps its files in dir and starts from image.
func New(bin, dir, image string) (*Peer, error) {
	p := &Peer{runsc: filepath.Join(bin, "runsc"), dir: filepath.Join(dir, "peer"), image: image}
	for _, name := range []string{"state", "overlay", "shared"} {
		if err := os.MkdirAll(filepath.Join(p.dir, name), 0o700); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close removes what the containers shared: their cgroup, and the empty network namespace
// that runsc mounts for its gofers.
func (p *Peer) Close() error {
	err := unix.Unmount(filepath.Join(p.dir, "state", "null-netns"), unix.MNT_DETACH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		err = nil // no container was ever started
	}
	parents, globErr := filepath.Glob("/sys/fs/cgroup/*" + Cgroup)
	err = errors.Join(err, globErr)
	for _, dir := range append(parents, "/sys/fs/cgroup"+Cgroup) {
		if removeErr := os.Remove(dir); removeErr != nil && !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// Shared is a directory that every container sees, read-only, at SharedMount.
func (p *Peer) Shared() string { return filepath.Join(p.dir, "shared") }

// SharedMount is where containers see what is in Shared.
const SharedMount = "/mnt"

// Container is one bare container.
type Container struct {
	peer *Peer
	ID   string
	net  netns.NsHandle
	out  *os.File // what its first process writes
}

// Prepare does all that is not part of a start: the namespace and the bundle. No id may
// begin another: runsc takes a prefix for the whole.
func (p *Peer) Prepare(id string, args ...string) (*Container, error) {
	c := &Container{peer: p, ID: id}
	var err error
	if c.net, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(c.bundle(), "root"), 0o700); err != nil {
		return nil, err
	}
	config, err := json.Marshal(c.spec(args))
	if err != nil {
		return nil, err
	}
	return c, os.WriteFile(filepath.Join(c.bundle(), "config.json"), config, 0o600)
}

func (c *Container) bundle() string { return filepath.Join(c.peer.dir, c.ID) }

func (c *Container) spec(args []string) *specs.Spec {
	memory, tasks, quota, period := int64(peerMemory), int64(peerTasks), int64(peerCPUPeriod), uint64(peerCPUPeriod)
	return &specs.Spec{
		Version: "1.0.0",
		Root:    &specs.Root{Path: filepath.Join(c.bundle(), "root")},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: peerOpenFiles, Hard: peerOpenFiles}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
			// Makes runsc start a gofer, which the overlay's file needs.
			{Destination: SharedMount, Type: "bind", Source: c.peer.Shared(), Options: []string{"bind", "ro"}},
		},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source":  c.peer.image,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "dir=" + filepath.Join(c.peer.dir, "overlay"),
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%dm", peerDiskMB),
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				// The namespace has no name; it lives while this process has it open.
				{Type: specs.NetworkNamespace, Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(c.net))},
			},
			CgroupsPath: Cgroup + "/" + c.ID,
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &memory},
				Pids:   &specs.LinuxPids{Limit: &tasks},
				CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
			},
		},
	}
}

// command is a call of runsc with the flags that all calls share.
func (p *Peer) command(ctx context.Context, args ...string) *exec.Cmd {
	flags := []string{
		"--root=" + filepath.Join(p.dir, "state"), "--network=sandbox", "--allow-suid",
		"--overlay2=root:dir=" + filepath.Join(p.dir, "overlay"), "--sidecar-usage-policy=DEFAULT",
	}
	return exec.CommandContext(ctx, p.runsc, append(flags, args...)...)
}

// Call runs runsc with these arguments.
func (p *Peer) Call(ctx context.Context, args ...string) error {
	cmd := p.command(ctx, args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("runsc %s: %w: %s", args[0], err, errOut.Bytes())
	}
	return nil
}

// Start creates and starts the container and waits until its first process has written.
func (c *Container) Start(ctx context.Context) error {
	if err := c.create(ctx); err != nil {
		return err
	}
	if err := c.peer.Call(ctx, "start", c.ID); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.out, make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the first output: %w", err)
	}
	return nil
}

// create makes the container with a new pipe for what its first process writes.
func (c *Container) create(ctx context.Context) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	if c.out != nil {
		c.out.Close()
	}
	c.out = read
	create := c.peer.command(ctx, "create", "--bundle", c.bundle(), c.ID)
	create.Stdout, create.Stderr = write, write
	err = create.Run()
	write.Close()
	if err != nil {
		text, _ := io.ReadAll(read)
		return fmt.Errorf("runsc create: %w: %s", err, text)
	}
	return nil
}

// Output is what the first process writes after its first byte, or after a restore.
func (c *Container) Output() io.Reader { return c.out }

// Remove ends the container and removes what was made for it.
func (c *Container) Remove() error {
	const removeLimit = 30 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
	defer cancel()
	err := c.peer.Call(ctx, "delete", "--force", c.ID)
	if c.out != nil {
		err = errors.Join(err, c.out.Close())
	}
	return errors.Join(err, c.net.Close(), os.RemoveAll(c.bundle()))
}

// MemoryInUse is what a cgroup counts, in bytes.
func MemoryInUse(parent, name string) (int64, error) {
	for _, pattern := range []string{cgroupMemoryV1, cgroupMemoryV2} {
		text, err := os.ReadFile(fmt.Sprintf(pattern, parent, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		var n int64
		_, err = fmt.Sscan(string(text), &n)
		return n, err
	}
	return 0, fmt.Errorf("no memory cgroup %s/%s", parent, name)
}

// ProcessorTime is what a cgroup, with all below it, has had of the processors.
func ProcessorTime(cgroup string) (time.Duration, error) {
	if text, err := os.ReadFile("/sys/fs/cgroup/cpuacct" + cgroup + "/cpuacct.usage"); err == nil {
		var nanoseconds int64
		_, err = fmt.Sscan(string(text), &nanoseconds)
		return time.Duration(nanoseconds), err
	}
	text, err := os.ReadFile("/sys/fs/cgroup" + cgroup + "/cpu.stat")
	if err != nil {
		return 0, err
	}
	var microseconds int64
	_, err = fmt.Sscanf(string(text), "usage_usec %d", &microseconds)
	return time.Duration(microseconds) * time.Microsecond, err
}
