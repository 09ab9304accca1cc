package main

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

	"github.com/wrenn-sandbox/wrenn/bench/bare"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

// holdings are what the server and its sandboxes have of the machine.
type holdings struct {
	processes  int // descendants of the server, of which sandboxes consist
	namespaces int // leased network namespaces
	mounts     int
	files      int     // that the server has open
	diskMiB    float64 // of the data directory
	memoryMiB  float64 // of the server
	guestsMiB  float64 // of all sandboxes, what the kernel caches of their files too
}

// The growth that is none: stubs of sandboxes come and go, so do the free pages of a heap,
// and ledgers grow with the time.
const (
	moreProcesses = 20 // percent
	moreFiles     = 8
	moreDiskMiB   = 64
	moreMemoryMiB = 24
	moreGuests    = 20 // percent
)

func (h holdings) within(early holdings) bool {
	return h.processes <= early.processes+early.processes*moreProcesses/percent && h.namespaces <= early.namespaces && h.mounts <= early.mounts &&
		h.files <= early.files+moreFiles && h.diskMiB <= early.diskMiB+moreDiskMiB && h.memoryMiB <= early.memoryMiB+moreMemoryMiB &&
		h.guestsMiB <= early.guestsMiB*(1+moreGuests/float64(percent))
}

func (b *bench) holdings() (h holdings, err error) {
	pid := b.server.Pid()
	if h.processes, err = descendants(pid); err != nil {
		return h, err
	}
	if h.namespaces, err = b.leases(); err != nil {
		return h, err
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return h, err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, b.server.Instance) || strings.Contains(line, b.dir) {
			h.mounts++
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return h, err
	}
	h.files = len(files)
	if h.diskMiB, err = onDisk(b.server.Data); err != nil {
		return h, err
	}
	if h.memoryMiB, err = b.server.Memory("VmRSS:"); err != nil {
		return h, err
	}
	guests, err := bare.MemoryInUse("/wrenn-"+b.server.Instance, ".")
	h.guestsMiB = float64(guests) / mib
	return h, err
}

// noMoreThan returns what is held once that is no more than it was, or at last if it never is.
func (b *bench) noMoreThan(ctx context.Context, early holdings) (late holdings, err error) {
	waitErr := await(ctx, "nothing has grown", func() error {
		if late, err = b.holdings(); err != nil {
			return err
		}
		if !late.within(early) {
			return errors.New("it has")
		}
		return nil
	})
	if ctx.Err() != nil {
		return late, waitErr
	}
	return late, err // that it grew is for the table to tell
}

// addGrowth adds what was held after few cycles and after all.
func (b *bench) addGrowth(early, late holdings) {
	counts, sizes := late, late // each row stands for its own
	counts.diskMiB, counts.memoryMiB, counts.guestsMiB = early.diskMiB, early.memoryMiB, early.guestsMiB
	sizes.processes, sizes.namespaces, sizes.mounts, sizes.files = early.processes, early.namespaces, early.mounts, early.files
	b.table.Add(report.Row{
		What:   fmt.Sprintf("after %d and %d cycles: processes, namespaces, mounts, open files", min(settled, b.cycles), b.cycles),
		Ours:   fmt.Sprintf("%d/%d, %d/%d, %d/%d, %d/%d", early.processes, late.processes, early.namespaces, late.namespaces, early.mounts, late.mounts, early.files, late.files),
		Target: "no growth", Met: counts.within(early),
	})
	b.table.Add(report.Row{
		What:   "the same: MiB of disk, MiB of memory of wrenn and of the sandboxes",
		Ours:   fmt.Sprintf("%.0f/%.0f, %.0f/%.0f, %.0f/%.0f", early.diskMiB, late.diskMiB, early.memoryMiB, late.memoryMiB, early.guestsMiB, late.guestsMiB),
		Target: "no growth", Met: sizes.within(early),
	})
}

// addLeft adds what is there when all sandboxes are gone.
func (b *bench) addLeft(ctx context.Context) error {
	left := func() (processes, snapshots, overlays int, err error) {
		if processes, err = descendants(b.server.Pid()); err != nil {
			return 0, 0, 0, err
		}
		for dir, n := range map[string]*int{"snapshots": &snapshots, "overlays": &overlays} {
			entries, err := os.ReadDir(filepath.Join(b.server.Data, dir))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return 0, 0, 0, err
			}
			*n = len(entries)
		}
		return processes, snapshots, overlays, nil
	}
	var processes, snapshots, overlays int
	waitErr := await(ctx, "nothing is left", func() (err error) {
		if processes, snapshots, overlays, err = left(); err == nil && processes+snapshots+overlays > 0 {
			err = errors.New("something is")
		}
		return err
	})
	if ctx.Err() != nil {
		return waitErr
	}
	b.table.Add(report.Row{
		What: "after all are deleted: processes, snapshots, overlays", Ours: fmt.Sprintf("%d, %d, %d", processes, snapshots, overlays),
		Target: "0, 0, 0", Met: processes+snapshots+overlays == 0,
	})
	return nil
}

// leases counts the network slots that the server has taken.
func (b *bench) leases() (int, error) {
	paths, err := filepath.Glob("/run/wrenn/slots/*")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil && bytes.Contains(text, []byte(b.server.Instance)) && !strings.HasPrefix(filepath.Base(path), "owner-") {
			n++
		}
	}
	return n, nil
}

// descendants counts the processes that a process has started, and those that they have.
func descendants(pid int) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, alive := parentOf(child); alive {
			children[parent] = append(children[parent], child)
		}
	}
	n := 0
	for left := children[pid]; len(left) > 0; left = left[1:] {
		n++
		left = append(left, children[left[0]]...)
	}
	return n, nil
}

// parentOf returns the parent of a process that has not ended.
func parentOf(pid int) (parent int, alive bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	var state string
	_, err = fmt.Sscan(string(text[bytes.LastIndexByte(text, ')')+1:]), &state, &parent)
	return parent, err == nil && state != "Z"
}

// onDisk is what the files in a directory take on the disk, in MiB.
func onDisk(dir string) (float64, error) {
	var blocks int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			blocks += info.Sys().(*syscall.Stat_t).Blocks
		}
		return err
	})
	const blockSize = 512
	return float64(blocks*blockSize) / mib, err
}
