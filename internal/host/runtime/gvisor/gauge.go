package gvisor

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// cgroupGauge reads what a sandbox's cgroup uses. Its files stay open, since to open one
// costs ten times what it costs to read. When the cgroup is gone they cannot be read
// (ENODEV), nor when the gauge was closed (fs.ErrClosed). It is safe for concurrent use.
type cgroupGauge struct {
	v2                bool
	cpu, memory, stat *os.File
	// reclaimable are the names in stat of what the kernel could take back.
	reclaimable []string
}

// gauge opens the gauge of a sandbox's cgroup.
func (c cgroups) gauge(id string) (*cgroupGauge, error) {
	g := &cgroupGauge{v2: c.v2, reclaimable: []string{"total_inactive_file", "total_active_file"}}
	cpu, memory := "cpuacct.usage", "memory.usage_in_bytes"
	if c.v2 {
		g.reclaimable = []string{"inactive_file", "active_file", "slab_reclaimable"}
		cpu, memory = "cpu.stat", "memory.current"
	}
	for _, f := range []struct {
		file             **os.File
		controller, name string
	}{{&g.cpu, "cpuacct", cpu}, {&g.memory, "memory", memory}, {&g.stat, "memory", "memory.stat"}} {
		var err error
		if *f.file, err = os.Open(c.file(f.controller, id, f.name)); err != nil {
			g.close()
			return nil, err
		}
	}
	return g, nil
}

func (g *cgroupGauge) close() {
	for _, f := range []*os.File{g.cpu, g.memory, g.stat} {
		if f != nil {
			_ = f.Close() // it was only read
		}
	}
}

// cpuTime returns the processor time that the sandbox has had.
func (g *cgroupGauge) cpuTime() (time.Duration, error) {
	text, err := readAll(g.cpu)
	if err != nil {
		return 0, err
	}
	if !g.v2 {
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		return time.Duration(n), err // nanoseconds
	}
	counts, err := parseCounters(text, []string{"usage_usec"})
	if err != nil {
		return 0, err
	}
	return time.Duration(counts[0]) * time.Microsecond, nil
}

// memoryBytes returns what the sandbox holds, without the pages of files, which the kernel
// takes back when it needs them. The guest's own memory is no such pages.
func (g *cgroupGauge) memoryBytes() (uint64, error) {
	text, err := readAll(g.memory)
	if err != nil {
		return 0, err
	}
	used, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, err
	}
	if text, err = readAll(g.stat); err != nil {
		return 0, err
	}
	counts, err := parseCounters(text, g.reclaimable)
	if err != nil {
		return 0, err
	}
	for _, n := range counts {
		used -= min(used, n) // the files are read one after the other
	}
	return used, nil
}

// maxGaugeFile is more than any of the files holds, in bytes.
const maxGaugeFile = 16 << 10

// readAll reads an open file from its beginning.
func readAll(file *os.File) (string, error) {
	buffer := make([]byte, maxGaugeFile)
	n, err := file.ReadAt(buffer, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(buffer[:n]), nil
}
