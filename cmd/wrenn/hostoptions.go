package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
)

const (
	mib     = 1 << 20
	megabit = 1_000_000 // bits

	// defaultOvercommit is how many times the machine's memory its sandboxes may be promised
	// together. Most of them are idle, and an idle one takes some dozen MiB.
	defaultOvercommit = 10
	// maxOvercommit is more than anybody has a use for, and keeps sums of MiB in range.
	maxOvercommit = 1000
	// maxNetworkRate is the most that may be asked for, in Mbit/s.
	maxNetworkRate = 1_000_000
)

// hostOptions is what the host agent is told.
type hostOptions struct {
	dataDir, imageDir string
	// onStop is what becomes of running sandboxes when the agent is stopped.
	onStop       sandbox.OnStop
	overcommit   float64
	maxSandboxes int
	networkRate  int // Mbit/s, each way, for each sandbox
}

// addFlags adds the flags that are about the host agent.
func (o *hostOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar((*string)(&o.onStop), "on-stop", string(sandbox.StopKeep),
		"what happens to running sandboxes when Wrenn is stopped: keep (they run on, and the next start takes them over), pause or kill")
	f.Float64Var(&o.overcommit, "memory-overcommit", defaultOvercommit, "how many times the machine's memory the sandboxes that run may be promised together")
	f.IntVar(&o.maxSandboxes, "max-sandboxes", 0, "how many sandboxes may run at once; 0: as many as there is room for")
	f.IntVar(&o.networkRate, "network-rate", 0, "what each sandbox may send, and receive, in Mbit/s; 0: as much as there is")
}

// check says which flag is wrong.
func (o *hostOptions) check() error {
	switch {
	case o.onStop != sandbox.StopKeep && o.onStop != sandbox.StopPause && o.onStop != sandbox.StopKill:
		return fault.New(fault.InvalidRequest, "--on-stop is %q; it must be keep, pause or kill", o.onStop)
	case !(o.overcommit > 0 && o.overcommit <= maxOvercommit): // NaN is neither
		return fault.New(fault.InvalidRequest, "--memory-overcommit is %v; it must be more than 0 and at most %d", o.overcommit, maxOvercommit)
	case o.maxSandboxes < 0:
		return fault.New(fault.InvalidRequest, "--max-sandboxes is %d; it must be 0 or more", o.maxSandboxes)
	case o.networkRate < 0 || o.networkRate > maxNetworkRate:
		return fault.New(fault.InvalidRequest, "--network-rate is %d; it must be from 0 to %d", o.networkRate, maxNetworkRate)
	}
	return nil
}

// The machine keeps a tenth of its memory for itself, and at least half a GiB.
const (
	reservedPart   = 10
	reservedMemory = 512 * mib
)

// capacity is the most that one sandbox may ask for, which is the whole machine but for the
// memory that it needs itself, and what all of them may have together.
func (o *hostOptions) capacity() (sandbox.Resources, sandbox.Admission, error) {
	var memory unix.Sysinfo_t
	if err := unix.Sysinfo(&memory); err != nil {
		return sandbox.Resources{}, sandbox.Admission{}, fmt.Errorf("read the machine's memory: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(o.dataDir, &disk); err != nil {
		return sandbox.Resources{}, sandbox.Admission{}, fmt.Errorf("read the size of the disk under %s: %w", o.dataDir, err)
	}
	total := memory.Totalram * uint64(memory.Unit)
	reserve := max(total/reservedPart, reservedMemory)
	most := sandbox.Resources{
		VCPUs:    runtime.NumCPU(),
		MemoryMB: int((total - reserve) / mib),
		DiskMB:   int(disk.Blocks * uint64(disk.Bsize) / mib),
	}
	return most, sandbox.Admission{
		MemoryMB: int(o.overcommit * float64(most.MemoryMB)), MaxSandboxes: o.maxSandboxes, ReserveMB: int(reserve / mib),
	}, nil
}

// agentOOMScore makes the kernel choose almost any other process when memory runs out: with
// the agent all sandboxes would lose who looks after them.
const agentOOMScore = -900

func protectAgent() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(agentOOMScore)), 0)
}
