package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/meminfo"
)

// What a machine should have so that a first sandbox, the base image and the build fit.
const (
	leastDisk    = 2 << 30  // bytes; below, nothing works
	enoughDisk   = 10 << 30 // bytes
	leastMemory  = 512 << 20
	enoughMemory = 2 << 30
)

// machine is what doctor looks at. Its parts can be exchanged, so that tests can show it
// machines that lack things.
type machine struct {
	os       string
	uid      int
	binDir   string // where this program is
	dataDir  string
	files    fs.FS // the root file system, for /proc and /sys
	lookPath func(name string) (string, error)
	// nftables opens the kernel's packet filter and looks into it.
	nftables func() error
	// free returns the free bytes of the file system that holds a path.
	free func(path string) (uint64, error)
}

func thisMachine(dataDir string) *machine {
	binDir := ""
	if self, err := os.Executable(); err == nil {
		binDir = filepath.Dir(self)
	}
	return &machine{
		os: runtime.GOOS, uid: os.Geteuid(), binDir: binDir, dataDir: dataDir, files: os.DirFS("/"),
		lookPath: lookPath, nftables: openNftables, free: freeBytes,
	}
}

// lookPath also finds the programs of root, which are outside some people's PATH.
func lookPath(name string) (string, error) {
	if found, err := exec.LookPath(name); err == nil {
		return found, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", exec.ErrNotFound
}

func openNftables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	_, err = conn.ListTables()
	return err
}

func freeBytes(path string) (uint64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if !errors.Is(err, unix.ENOENT) || path == "/" || path == "." {
			return st.Bavail * uint64(st.Bsize), err //nolint:gosec // a block size is not negative
		}
		path = filepath.Dir(path) // it will be made there
	}
}

func (m *machine) system(context.Context) finding {
	if m.os != "linux" {
		return finding{"Linux", lacking, m.os, "sandboxes need a Linux kernel: use a Linux machine or VM; the client commands work from here"}
	}
	release, err := fs.ReadFile(m.files, "proc/sys/kernel/osrelease")
	if err != nil {
		return finding{"Linux", poor, "the kernel's version cannot be read: " + err.Error(), "mount /proc"}
	}
	return finding{"Linux", good, strings.TrimSpace(string(release)), ""}
}

func (m *machine) privilege(context.Context) finding {
	if m.uid != 0 {
		return finding{"root", lacking, fmt.Sprintf("running as uid %d", m.uid), "run `wrenn up` and `wrenn doctor` as root: sudo wrenn doctor"}
	}
	return finding{"root", good, "yes", ""}
}

func (m *machine) runsc(context.Context) finding { return m.ours("runsc", true) }
func (m *machine) envd(context.Context) finding  { return m.ours("envd", false) }

// ours looks for a program that is built with this one and stands beside it.
func (m *machine) ours(name string, orInPath bool) finding {
	if m.binDir != "" {
		beside := filepath.Join(m.binDir, name)
		if info, err := fs.Stat(m.files, strings.TrimPrefix(beside, "/")); err == nil && info.Mode().IsRegular() {
			return finding{name, good, beside, ""}
		}
	}
	if orInPath {
		if found, err := m.lookPath(name); err == nil {
			return finding{name, good, found, ""}
		}
	}
	return finding{name, lacking, "not beside the wrenn program", "run `make build` in Wrenn's source"}
}

// program is the check for a program of the distribution.
func (m *machine) program(name, debianPackage string) func(context.Context) finding {
	return func(context.Context) finding {
		found, err := m.lookPath(name)
		if err != nil {
			return finding{name, lacking, "not installed", "apt-get install " + debianPackage}
		}
		return finding{name, good, found, ""}
	}
}

func (m *machine) firewall(context.Context) finding {
	if err := m.nftables(); err != nil {
		return finding{"nftables", lacking, err.Error(), "load the kernel's nf_tables as root: modprobe nf_tables"}
	}
	return finding{"nftables", good, "usable", ""}
}

func (m *machine) forwarding(context.Context) finding {
	const name = "ip_forward"
	value, err := fs.ReadFile(m.files, "proc/sys/net/ipv4/ip_forward")
	switch {
	case err != nil:
		return finding{name, lacking, err.Error(), "sandboxes reach the internet by IPv4: use a kernel that has it"}
	case strings.TrimSpace(string(value)) != "1":
		return finding{name, poor, "off", "`wrenn up` turns it on; to keep it so: sysctl -w net.ipv4.ip_forward=1"}
	}
	return finding{name, good, "on", ""}
}

func (m *machine) cgroups(context.Context) finding {
	const name = "cgroups"
	version, have := 2, []string(nil)
	if text, err := fs.ReadFile(m.files, "sys/fs/cgroup/cgroup.controllers"); err == nil {
		have = strings.Fields(string(text))
	} else {
		version = 1
		entries, err := fs.ReadDir(m.files, "sys/fs/cgroup")
		if err != nil {
			return finding{name, lacking, err.Error(), "mount the control groups at /sys/fs/cgroup"}
		}
		for _, e := range entries {
			have = append(have, strings.Split(e.Name(), ",")...)
		}
	}
	var lack []string
	for _, controller := range []string{"memory", "cpu", "pids"} {
		if !slices.Contains(have, controller) {
			lack = append(lack, controller)
		}
	}
	if len(lack) > 0 {
		return finding{name, lacking, fmt.Sprintf("v%d without %s", version, strings.Join(lack, ", ")),
			"give the kernel these controllers (on its command line: cgroup_enable=memory), or the container that this is"}
	}
	return finding{name, good, fmt.Sprintf("v%d with memory, cpu and pids", version), ""}
}

func (m *machine) disk(context.Context) finding {
	free, err := m.free(m.dataDir)
	if err != nil {
		return finding{"disk", poor, fmt.Sprintf("%s: %v", m.dataDir, err), "name a directory with --data-dir"}
	}
	return amount("disk", free, leastDisk, enoughDisk, fmt.Sprintf("%s free at %s", gibibytes(free), m.dataDir),
		fmt.Sprintf("free some space; %s are comfortable", gibibytes(enoughDisk)))
}

func (m *machine) memory(context.Context) finding {
	const name = "memory"
	text, err := fs.ReadFile(m.files, "proc/meminfo")
	if err != nil {
		return finding{name, poor, err.Error(), "mount /proc"}
	}
	available, err := meminfo.Parse(string(text))
	if err != nil {
		return finding{name, poor, "/proc/meminfo does not tell", "use a kernel of this century"}
	}
	return amount(name, available, leastMemory, enoughMemory, gibibytes(available)+" available",
		fmt.Sprintf("%s are comfortable; a sandbox has 512 MiB unless it asks for more", gibibytes(enoughMemory)))
}

// amount judges how much there is of something.
func amount(name string, have, least, enough uint64, detail, fix string) finding {
	switch {
	case have < least:
		return finding{name, lacking, detail, fix}
	case have < enough:
		return finding{name, poor, detail, fix}
	}
	return finding{name, good, detail, ""}
}

func gibibytes(n uint64) string {
	const perGiB = 1 << 30
	return fmt.Sprintf("%.1f GiB", float64(n)/perGiB)
}
