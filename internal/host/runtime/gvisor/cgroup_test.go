package gvisor

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The machine that runs the tests has one of the two versions; both are read here.
func TestCgroupsOfBothVersionsAreRead(t *testing.T) {
	for version, files := range map[string]map[string]string{
		"v1": {
			"memory/us/one/memory.usage_in_bytes": "1000000\n",
			"memory/us/one/memory.stat":           "cache 5\ntotal_inactive_file 200000\ntotal_active_file 50000\nactive_file 7\n",
			"memory/us/one/memory.oom_control":    "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
			"cpuacct/us/one/cpuacct.usage":        "3000000000\n",
			"cpu/us/one/cpu.shares":               "1024\n",
			"pids/us/one/pids.events":             "max 0\n",
		},
		"v2": {
			"cgroup.controllers":    "cpu memory pids\n",
			"us/one/memory.current": "1000000\n",
			"us/one/memory.stat":    "anon 5\ninactive_file 150000\nactive_file 50000\nslab_reclaimable 50000\n",
			"us/one/memory.events":  "oom 1\noom_kill 1\n",
			"us/one/cpu.stat":       "usage_usec 3000000\nuser_usec 1\n",
			"us/one/pids.events":    "max 0\n",
		},
	} {
		root := t.TempDir()
		for file, text := range files {
			path := filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := findCgroups(root, "us")
		if err != nil {
			t.Fatal(version, err)
		}
		g, err := c.gauge("one")
		if err != nil {
			t.Fatal(version, err)
		}
		t.Cleanup(g.close)
		if cpu, err := g.cpuTime(); err != nil || cpu != 3*time.Second {
			t.Errorf("%s: cpu time %v, %v", version, cpu, err)
		}
		if used, err := g.memoryBytes(); err != nil || used != 750000 {
			t.Errorf("%s: memory %d, %v", version, used, err)
		}
		if !c.outOfMemory("one") || c.outOfTasks("one") || c.outOfMemory("two") {
			t.Errorf("%s: events are misread", version)
		}
		if _, err := c.gauge("two"); !os.IsNotExist(err) {
			t.Errorf("%s: gauge of none: %v", version, err)
		}
	}
}
