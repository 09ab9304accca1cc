package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

const (
	mib = 1 << 20

	// sentryMemoryMB is what the sentry, its gofer and its stubs need on top of the
	// guest's memory, in MiB. They share the guest's cgroup.
	sentryMemoryMB = 64
	// restoredMemoryMB is what a restored sentry may need more than one that booted: a
	// guest that filled its memory must be able to come back.
	restoredMemoryMB = 32

	// A guest task costs about 2.1 host tasks on top of some 50 idle ones. When the
	// host's limit is reached the whole sandbox dies, so the limit leaves a margin
	// above what the guest's own limit lets it reach.
	hostTasksPerGuestTask = 3
	hostTasksIdle         = 512

	cpuPeriodMicros = 100_000
	// leastVisibleCPUs is how many processors a guest sees whatever its quota.
	leastVisibleCPUs = 2

	maxOpenFiles     = 1 << 20
	defaultOpenFiles = 65_536
)

// guestOOMScore is where the kernel begins with sandboxes when memory runs out.
var guestOOMScore = 0

// capabilities are what a root user inside needs for package managers, sudo, su, mount,
// unshare and strace to work. They are gVisor's, not the host kernel's.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_SETFCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW",
	"CAP_NET_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD", "CAP_AUDIT_WRITE",
	"CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
}

// writeBundle makes the OCI bundle of a sandbox: config.json and an empty root that
// the EROFS image is mounted over inside the sentry.
func (d *Driver) writeBundle(spec runtime.Spec) error {
	if len(spec.Mounts) == 0 {
		// Without a bind mount runsc starts no gofer, and without a gofer it never
		// makes the overlay's file and dies.
		return fmt.Errorf("spec of %s has no mounts", spec.ID)
	}
	sum, err := imageSum(spec.RootFS)
	if err != nil {
		return err
	}
	image, err := d.linkRootFS(spec.RootFS)
	if err != nil {
		return err
	}
	root, err := d.makeBundle(spec.ID)
	if err != nil {
		return err
	}
	return d.finishBundle(spec.ID, origin{Program: d.current, Image: sum}, d.ociSpec(spec, root, image))
}

// makeBundle makes the directories of a bundle and returns the one that is its root.
func (d *Driver) makeBundle(id string) (root string, err error) {
	root = filepath.Join(d.bundle(id), "root")
	return root, os.MkdirAll(root, 0o700)
}

// finishBundle writes what a bundle consists of, and where it comes from.
func (d *Driver) finishBundle(id string, from origin, config *specs.Spec) error {
	if err := writeOrigin(d.bundle(id), from); err != nil {
		return err
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.bundle(id), configFile), text, 0o600)
}

func (d *Driver) ociSpec(spec runtime.Spec, root, image string) *specs.Spec {
	return &specs.Spec{
		Version:  "1.0.0",
		Hostname: spec.Hostname,
		Root:     &specs.Root{Path: root},
		Process: &specs.Process{
			Args: spec.Args,
			Env:  spec.Env,
			Cwd:  "/",
			// What the agent protects itself with must not pass on to its sandboxes: the
			// kernel would have nothing to end but other people's programs.
			OOMScoreAdj: &guestOOMScore,
			Capabilities: &specs.LinuxCapabilities{
				Bounding: capabilities, Effective: capabilities, Permitted: capabilities,
			},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: defaultOpenFiles, Hard: maxOpenFiles}},
		},
		Mounts: ociMounts(spec),
		Annotations: map[string]string{
			rootfsSource:                     image,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "dir=" + d.overlayLink(),
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%dm", spec.Limits.DiskMB),
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace, Path: spec.Namespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
			},
			CgroupsPath: d.cgroups.path(spec.ID),
			Resources:   ociResources(spec.Limits, sentryMemoryMB),
		},
	}
}

func ociMounts(spec runtime.Spec) []specs.Mount {
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		// Shared memory counts as the guest's memory; half of it is what Linux allows too.
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"mode=1777", fmt.Sprintf("size=%dm", max(1, spec.Limits.MemoryMB/2))}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
	}
	for _, m := range spec.Mounts {
		mounts = append(mounts, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: []string{"bind", "ro"}})
	}
	return mounts
}

// cpuQuota is the time that so many processors have in a period, in microseconds.
func cpuQuota(vcpus int) int64 { return int64(vcpus) * cpuPeriodMicros }

// ociResources are the limits of a sandbox whose sentry may take so much memory.
func ociResources(l runtime.Limits, sentryMB int) *specs.LinuxResources {
	memory := int64(l.MemoryMB+sentryMB) * mib
	tasks := int64(l.Processes*hostTasksPerGuestTask + hostTasksIdle)
	// A start is the sentry's work, and under the quota of one processor it would stand still
	// for most of its time: it gets two until Start is done with limitCPU. That is how many
	// gVisor shows to a guest at least, so no guest sees more of them than it would.
	quota := cpuQuota(max(l.VCPUs, leastVisibleCPUs))
	period := uint64(cpuPeriodMicros)
	return &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory},
		Pids:   &specs.LinuxPids{Limit: &tasks},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
	}
}
