package runtimetest

import (
	"fmt"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

const (
	// busyTime is the processor time after which a guest counts as busy.
	busyTime = 500 * time.Millisecond
	// usageMB is how much the guest writes, and then holds.
	usageMB = 64
	mib     = 1 << 20
)

func usageIsTold(t *testing.T, env Env) {
	g := env.start(t, "conformusage")
	usage := func() runtime.Usage {
		t.Helper()
		used, err := env.Driver.Usage(t.Context(), g.id)
		if err != nil {
			t.Fatal(err)
		}
		return used
	}
	before := usage()
	if before.MemoryBytes == 0 || before.MemoryBytes > memoryMB*mib || before.CPU == 0 {
		t.Errorf("an idle sandbox uses %+v", before)
	}
	began := time.Now()
	g.want(t, "timeout 60 sh -c 'while :; do :; done' >/dev/null 2>&1 & echo busy", "busy")
	if !eventually(func() bool { return usage().CPU > before.CPU+busyTime }) {
		t.Errorf("a busy guest has had %v", usage().CPU-before.CPU)
	}
	if cpu, most := usage().CPU-before.CPU, time.Since(began)*time.Duration(goruntime.NumCPU()); cpu > most {
		t.Errorf("it has had %v, and there were %v", cpu, most)
	}
	if !eventually(func() bool { u := usage(); return u.Processes >= 2 && u.Processes < 20 && u.ProcessLimit == processes }) {
		t.Errorf("it has %d processes of %d, want some of %d", usage().Processes, usage().ProcessLimit, processes)
	}
	if most := usage().MemoryLimitBytes; most < memoryMB*mib || most > 2*memoryMB*mib {
		t.Errorf("of %d MiB it may have %d", memoryMB, most/mib)
	}
	g.want(t, "pkill timeout; echo calm", "calm")
	g.want(t, fmt.Sprintf("head -c %d /dev/urandom > /root/big; sync; echo written", usageMB*mib), "written")
	written := usage()
	if grown := int64(written.DiskBytes - before.DiskBytes); grown < usageMB*mib || grown > 2*usageMB*mib {
		t.Errorf("%d MiB written count as %d", usageMB, grown/mib)
	}
	if grown := int64(written.MemoryBytes) - int64(before.MemoryBytes); grown > usageMB*mib/2 {
		t.Errorf("a file counts as %d MiB of memory", grown/mib)
	}
	g.want(t, "rm /root/big; sync; echo removed", "removed")
	if !eventually(func() bool { return usage().DiskBytes < before.DiskBytes+usageMB*mib/4 }) {
		t.Errorf("after the removal it is %d MiB", usage().DiskBytes/mib)
	}
	g.bringWitness(t, usageMB*mib)
	if grown := int64(usage().MemoryBytes - before.MemoryBytes); grown < usageMB*mib {
		t.Errorf("a process with %d MiB counts as %d", usageMB, grown/mib)
	}
	g.want(t, "pkill python3; echo ended", "ended")
	if !eventually(func() bool { return usage().MemoryBytes < before.MemoryBytes+usageMB*mib/2 }) {
		t.Errorf("after its end the sandbox holds %d MiB", usage().MemoryBytes/mib)
	}
	env.destroy(t, g.id)
	for _, id := range []string{g.id, "conformnever"} {
		if _, err := env.Driver.Usage(t.Context(), id); !fault.Is(err, fault.NotFound) {
			t.Errorf("usage of %s, which does not run: %v", id, err)
		}
	}
}
