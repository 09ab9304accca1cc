package lifecycle

import (
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Metrics are what the sandbox uses at a moment.
type Metrics struct {
	At       time.Time
	CPUCount int
	// CPUUsed is the share of all processors that was used since the measurement before,
	// in percent from 0 to 100.
	CPUUsed float64
	// Memory and disk in bytes. MemUsed is what could not be given to a process that asks
	// for memory; MemCache is files, of which most could. The disk is the one of /.
	MemTotal, MemUsed, MemCache uint64
	DiskTotal, DiskUsed         uint64
}

// Meter measures. It is safe for concurrent use.
//
// It believes the kernel's own view, in which the limits of a sandbox are the size of the
// machine: a guest kernel knows no other, and gVisor shows the sandbox's cgroup that way.
type Meter struct {
	stat, meminfo, root string

	mu   sync.Mutex
	last processorTime
	used float64 // of the measurement before, for one that comes before the clock has moved
}

// NewMeter returns a Meter of this sandbox; the first measurement counts from here.
func NewMeter() *Meter {
	m := &Meter{stat: "/proc/stat", meminfo: "/proc/meminfo", root: "/"}
	m.last, _ = m.processorTime() // without it the first measurement counts from the boot
	return m
}

// Measure returns what is used now.
func (m *Meter) Measure() (Metrics, error) {
	out := Metrics{At: time.Now(), CPUCount: runtime.NumCPU()}
	var err error
	if out.CPUUsed, err = m.processors(); err != nil {
		return out, fault.Wrap(err, fault.Internal, "the use of the processors cannot be read")
	}
	if err := m.memory(&out); err != nil {
		return out, fault.Wrap(err, fault.Internal, "the use of memory cannot be read")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.root, &fs); err != nil {
		return out, fault.Wrap(err, fault.Internal, "the use of the disk cannot be read")
	}
	out.DiskTotal = fs.Blocks * uint64(fs.Bsize)
	out.DiskUsed = out.DiskTotal - min(out.DiskTotal, fs.Bfree*uint64(fs.Bsize))
	return out, nil
}

// processorTime counts ticks of all processors since the boot.
type processorTime struct{ busy, total uint64 }

// The columns of /proc/stat's first line, see proc_stat(5). What guests of this machine
// use is counted in user and nice already.
const (
	statIdle    = 3
	statIOWait  = 4
	statColumns = 8
)

func (m *Meter) processorTime() (processorTime, error) {
	data, err := os.ReadFile(m.stat)
	if err != nil {
		return processorTime{}, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	numbers, isTotal := strings.CutPrefix(line, "cpu ")
	fields := strings.Fields(numbers)
	if !isTotal || len(fields) <= statIdle {
		return processorTime{}, fault.New(fault.Internal, "%s begins with %q", m.stat, line)
	}
	var t processorTime
	for i, field := range fields[:min(len(fields), statColumns)] {
		ticks, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return processorTime{}, err
		}
		t.total += ticks
		if i != statIdle && i != statIOWait {
			t.busy += ticks
		}
	}
	return t, nil
}

// processors returns the share used since the measurement before, in percent with two
// digits after the point.
func (m *Meter) processors() (float64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, err := m.processorTime()
	if err != nil {
		return 0, err
	}
	// The counts of idle time may go back a little; then there is nothing to tell yet.
	if now.total <= m.last.total {
		return m.used, nil
	}
	busy := float64(now.busy) - float64(m.last.busy)
	share := busy / float64(now.total-m.last.total)
	m.used = math.Round(min(max(share, 0), 1)*1e4) / 1e2
	m.last = now
	return m.used, nil
}

func (m *Meter) memory(out *Metrics) error {
	data, err := os.ReadFile(m.meminfo)
	if err != nil {
		return err
	}
	var available uint64
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, ":")
		var to *uint64
		switch name {
		case "MemTotal":
			to = &out.MemTotal
		case "MemAvailable":
			to = &available
		case "Cached":
			to = &out.MemCache
		default:
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err != nil {
			return err
		}
		*to = kib << 10
	}
	if out.MemTotal == 0 {
		return fault.New(fault.Internal, "%s does not say how much memory there is", m.meminfo)
	}
	out.MemUsed = out.MemTotal - min(out.MemTotal, available)
	return nil
}
