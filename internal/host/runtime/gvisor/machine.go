package gvisor

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

const (
	pidMaxFile = "/proc/sys/kernel/pid_max"
	// pidMax is the most that a 64-bit kernel allows, and what systemd sets.
	pidMax = 1 << 22

	// sharedPagesFile says whether the kernel gives shared memory out in pieces of 16 KiB. It
	// is there since Linux 6.11, with pages of 4 KiB.
	sharedPagesFile = "/sys/kernel/mm/transparent_hugepage/hugepages-16kB/shmem_enabled"
)

// prepareMachine sets what many sandboxes want of a machine. They run without it too.
func prepareMachine(log *slog.Logger) {
	if err := allowManyTasks(pidMaxFile); err != nil {
		log.Warn("sandboxes share the machine's few process ids; raise kernel.pid_max", "error", err)
	}
	if err := enlargeSharedPages(sharedPagesFile); err != nil {
		log.Warn("sandboxes get their memory in small pages, which takes longer", "error", err)
	}
}

// allowManyTasks raises the number of process ids that the machine has. Every task of a
// guest is two or three of the host, so that a few dozen busy sandboxes would use up the
// kernel's default of 32768 between them.
func allowManyTasks(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || now >= pidMax {
		return err
	}
	return os.WriteFile(file, []byte(strconv.Itoa(pidMax)), 0)
}

// enlargeSharedPages has the kernel give shared memory, which that of guests is, four pages
// at a time: a restore spends most of its time on being given pages. Larger pieces are no
// quicker, and cost a guest more that touches a little here and there. A choice that somebody
// has made already, and a kernel that has none, are left alone.
func enlargeSharedPages(file string) error {
	const (
		off = "[never]" // the kernel's default
		on  = "always"
	)
	choice, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !strings.Contains(string(choice), off) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(on), 0)
}
