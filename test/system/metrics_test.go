package system_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
)

// metricsPoint is a point of …/metrics.
type metricsPoint struct {
	TimestampUnix    int64   `json:"timestamp_unix"`
	CPUPct           float64 `json:"cpu_pct"`
	CPULimitPct      float64 `json:"cpu_limit_pct"`
	MemBytes         int64   `json:"mem_bytes"`
	MemLimitBytes    int64   `json:"mem_limit_bytes"`
	DiskBytes        int64   `json:"disk_bytes"`
	DiskLimitBytes   int64   `json:"disk_limit_bytes"`
	Pids             int64   `json:"pids"`
	PidsLimit        int64   `json:"pids_limit"`
	NetSentBytes     int64   `json:"net_sent_bytes"`
	NetReceivedBytes int64   `json:"net_received_bytes"`
	NetSentBps       int64   `json:"net_sent_bps"`
	NetReceivedBps   int64   `json:"net_received_bps"`
	NetLimitBps      int64   `json:"net_limit_bps"`
}

// metrics returns what s has used in the last 5 minutes.
func (s *sandbox) metrics(t testing.TB) []metricsPoint {
	t.Helper()
	var got struct{ Points []metricsPoint }
	a := s.p.call(t, http.MethodGet, s.path("/metrics?range=5m"), nil)
	if err := json.Unmarshal(a.body, &got); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return got.Points
}

// untilMost waits for a point in which a value is from least to most, and fails when one is
// more than that.
func (s *sandbox) untilMost(t *testing.T, what string, least, most int64, value func(metricsPoint) int64) {
	t.Helper()
	eventually(t, settleLimit, func() error {
		var highest int64
		for _, p := range s.metrics(t) {
			highest = max(highest, value(p))
		}
		if highest > most {
			t.Fatalf("%s: %d is beyond its limit of %d", what, highest, most)
		}
		if highest < least {
			return fmt.Errorf("%s: at most %d, want %d", what, highest, least)
		}
		return nil
	})
}

// Every limit holds in the sandbox, and what is used and the limit can be seen from outside,
// also after a pause.
func TestLimitsHoldAndAreSeen(t *testing.T) {
	const (
		memoryMB, diskMB, rateMbit = 256, 64, 40
		mbit                       = 1_000_000
		// processes is a process for each 2 MiB of memory, at least 128.
		processes = 128
		// sentryMB is what the sandbox's kernel may have besides.
		sentryMB = 64
	)
	p := ownProgram(t, t.TempDir(), "--network-rate", fmt.Sprint(rateMbit))
	s := newSandbox(t, p, object{"memory_mb": memoryMB, "disk_size_mb": diskMB})

	s.sh(t, "for i in 1 2; do timeout 2 sh -c 'while :; do :; done' & done; wait; true")
	// What is measured over half a second may have the end of a quota's period too many.
	s.untilMost(t, "cpu", 80, 130, func(p metricsPoint) int64 { return int64(p.CPUPct) })

	if r := s.exec(t, object{"cmd": "sh", "args": []string{"-c", "head -c 100000000 /dev/zero >~/big"}}); r.code == 0 {
		t.Error("it may write more than its disk")
	}
	s.untilMost(t, "disk", (diskMB-4)*mib, (diskMB+4)*mib, func(p metricsPoint) int64 { return p.DiskBytes })
	s.sh(t, "head -c 8000000 ~/big >/tmp/part; rm ~/big; head -c 8000000 /dev/zero >~/sent")

	const crowd = `
import os, signal, time
pids = []
try:
    while True:
        pids.append(os.posix_spawn("/bin/sleep", ["sleep", "60"], {}))
except OSError as e:
    print(e.errno, flush=True)
time.sleep(1.2)
for pid in pids:
    os.kill(pid, signal.SIGKILL)
for pid in pids:
    os.waitpid(pid, 0)
held = bytearray(b"x") * (100 << 20)
time.sleep(1.2)
`
	const eagain = "11\n"
	if r := s.exec(t, object{"cmd": "python3", "args": []string{"-c", crowd}, "timeout_sec": 60}); r.stdout != eagain {
		t.Errorf("with too many processes: %+v", r)
	}
	s.untilMost(t, "pids", processes, processes, func(p metricsPoint) int64 { return p.Pids })
	s.untilMost(t, "memory", 100*mib, (memoryMB+sentryMB)*mib, func(p metricsPoint) int64 { return p.MemBytes })

	if a := p.call(t, http.MethodPost, s.path("/files/stream/read"), object{"path": "/home/wrenn-user/sent"}); a.status != http.StatusOK || len(a.body) != 8_000_000 {
		t.Fatalf("a download answered %d with %d bytes", a.status, len(a.body))
	}
	// After silence a bucketful comes on top of the rate.
	s.untilMost(t, "network", rateMbit*mbit/2, rateMbit*mbit*13/10, func(p metricsPoint) int64 { return p.NetSentBps })
	s.untilMost(t, "sent", 8_000_000, 9_000_000, func(p metricsPoint) int64 { return p.NetSentBytes })

	s.do(t, "/pause", nil, http.StatusOK)
	s.do(t, "/resume", nil, http.StatusOK)
	before := s.metrics(t)
	eventually(t, settleLimit, func() error {
		all := s.metrics(t)
		last := all[len(all)-1]
		if last.TimestampUnix <= before[len(before)-1].TimestampUnix {
			return fmt.Errorf("no point since the resume")
		}
		if last.NetSentBytes < 8_000_000 || last.NetReceivedBytes == 0 {
			t.Fatalf("what went before the pause is forgotten: %+v", last)
		}
		want := metricsPoint{
			CPULimitPct: 100, MemLimitBytes: (memoryMB + sentryMB + 32) * mib, DiskLimitBytes: diskMB * mib,
			PidsLimit: processes, NetLimitBps: rateMbit * mbit,
		}
		if got := (metricsPoint{
			CPULimitPct: last.CPULimitPct, MemLimitBytes: last.MemLimitBytes, DiskLimitBytes: last.DiskLimitBytes,
			PidsLimit: last.PidsLimit, NetLimitBps: last.NetLimitBps,
		}); got != want {
			t.Errorf("the limits are %+v, want %+v", got, want)
		}
		return nil
	})
}
