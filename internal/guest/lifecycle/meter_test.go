package lifecycle

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMeter(t *testing.T) {
	dir := t.TempDir()
	m := &Meter{stat: filepath.Join(dir, "stat"), meminfo: filepath.Join(dir, "meminfo"), root: "/"}
	put(t, m.meminfo, "MemTotal:        1024 kB\nMemFree:  1 kB\nMemAvailable:    256 kB\nCached:   64 kB\nSwapCached: 9 kB\n")
	for _, step := range []struct {
		stat string
		want float64
	}{
		{"cpu  100 0 100 700 100 0 0 0 50 50\ncpu0 1 1 1 1\n", 20}, // since the boot
		{"cpu  150 0 150 800 100 0 0 0 50 50\n", 50},
		{"cpu  150 0 150 800 100 0 0 0 50 50\n", 50}, // no time has passed
		{"cpu  150 0 150 790 100 0 0 0 50 50\n", 50}, // or less than none
		{"cpu  150 0 151 802 100 0 0 0 50 50\n", 33.33},
		{"cpu  1000 0 151 802", 100},
	} {
		put(t, m.stat, step.stat)
		got, err := m.Measure()
		if err != nil || got.CPUUsed != step.want {
			t.Errorf("%q: %v %%, %v; want %v", step.stat, got.CPUUsed, err, step.want)
		}
		if got.MemTotal != 1024<<10 || got.MemUsed != 768<<10 || got.MemCache != 64<<10 {
			t.Errorf("memory %+v", got)
		}
	}
	for _, wrong := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5", "cpu a b c d e", "cpu -1 0 0 0"} {
		put(t, m.stat, wrong)
		if got, err := m.Measure(); err == nil {
			t.Errorf("%q is read as %+v", wrong, got)
		}
	}
}

func TestMeterOfThisMachine(t *testing.T) {
	m := NewMeter()
	// A fresh sandbox has written nothing yet.
	m.root = t.TempDir()
	if err := os.WriteFile(m.root+"/written", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before := m.last
	// Work until the kernel has counted some of it.
	deadline := time.Now().Add(patience)
	for now := before; now.busy < before.busy+5; {
		var err error
		if now, err = m.processorTime(); err != nil || time.Now().After(deadline) {
			t.Fatalf("%+v after %+v: %v", now, before, err)
		}
	}
	got, err := m.Measure()
	if err != nil {
		t.Fatal(err)
	}
	if got.CPUCount != runtime.NumCPU() || got.CPUUsed <= 0 || got.CPUUsed > 100 ||
		got.MemTotal == 0 || got.MemUsed == 0 || got.MemUsed > got.MemTotal || got.MemCache > got.MemTotal ||
		got.DiskTotal == 0 || got.DiskUsed == 0 || got.DiskUsed > got.DiskTotal || time.Since(got.At) > patience {
		t.Errorf("%+v", got)
	}
}
