package system_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// kind is a kind of thing that sandboxes leave on a machine.
type kind string

const (
	processes  kind = "process"
	namespaces kind = "namespace"
	links      kind = "link"
	mounts     kind = "mount"
	elements   kind = "set element"
	cgroups    kind = "cgroup"
	bundles    kind = "bundle"
	leases     kind = "lease"
	overlays   kind = "overlay file"
	records    kind = "record"

	// These stay while the program runs.
	tables  kind = "table"
	runDirs kind = "run directory"
	owners  kind = "owner of leases"
)

var (
	// ofSandboxes is what must be gone when there are no sandboxes any more.
	ofSandboxes = []kind{processes, namespaces, links, mounts, elements, cgroups, bundles, leases, overlays, records}
	// everything is what must be gone when the program has stopped.
	everything = append(slices.Clone(ofSandboxes), tables, runDirs, owners)
)

// observer finds the traces of one data directory on this machine, on which other
// instances may be at work. It is not safe for concurrent use.
type observer struct {
	instance string
	dataDir  string
	indexes  map[int]bool // the slots that it has seen in use
}

const (
	leaseDir     = "/run/wrenn/slots"
	namespaceDir = "/run/netns"

	// sharedNamespace is the empty namespace that the runtime mounts once for all its
	// sandboxes, in the run directory, and which goes with that.
	sharedNamespace = "null-netns"
)

// look remembers the slots in use, whose namespaces and links bear no other mark of ours.
func (o *observer) look() {
	for index, owner := range allLeases() {
		if owner == o.instance {
			o.indexes[index] = true
		}
	}
}

// allLeases returns the instances that hold slots, by slot.
func allLeases() map[int]string {
	found := map[int]string{}
	entries, _ := os.ReadDir(leaseDir)
	for _, e := range entries {
		index, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(leaseDir, e.Name()))
		if err != nil {
			continue
		}
		var owner struct {
			Instance string `json:"instance"`
		}
		if json.Unmarshal(text, &owner) == nil {
			found[index] = owner.Instance
		}
	}
	return found
}

// traces returns what there is of the given kinds.
func (o *observer) traces(kinds []kind) []string {
	o.look()
	var found []string
	for _, k := range kinds {
		for _, name := range o.find(k) {
			found = append(found, string(k)+" "+name)
		}
	}
	return found
}

// settled waits until nothing is left of the given kinds, and returns what still is.
func (o *observer) settled(kinds []kind) []string {
	deadline := time.After(settleLimit)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		left := o.traces(kinds)
		if len(left) == 0 {
			return nil
		}
		select {
		case <-deadline:
			return left
		case <-tick.C:
		}
	}
}

func (o *observer) find(k kind) []string {
	runDir := filepath.Join("/run/wrenn", o.instance)
	switch k {
	case processes:
		return o.processes()
	case namespaces, links:
		return o.slotParts(k)
	case mounts:
		return o.mounts()
	case elements, tables:
		return o.firewall(k)
	case cgroups:
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/wrenn-" + o.instance + "/*/cgroup.procs")
		unified, _ := filepath.Glob("/sys/fs/cgroup/wrenn-" + o.instance + "/*/cgroup.procs")
		return append(dirs, unified...)
	case bundles:
		return globs(runDir+"/bundles/*", runDir+"/gvisor/*", runDir+"/runsc-*")
	case leases:
		var held []string
		for index, owner := range allLeases() {
			if owner == o.instance {
				held = append(held, strconv.Itoa(index))
			}
		}
		return held
	case overlays:
		return globs(o.dataDir+"/overlays/*", o.dataDir+"/overlays/.*")
	case records:
		return globs(o.dataDir + "/sandboxes/*")
	case runDirs:
		return globs(runDir)
	case owners:
		return globs(leaseDir + "/owner-" + o.instance + "*")
	}
	panic("unknown kind " + k)
}

func globs(patterns ...string) []string {
	var found []string
	for _, p := range patterns {
		paths, _ := filepath.Glob(p)
		for _, path := range paths {
			if base := filepath.Base(path); base != "." && base != ".." && base != sharedNamespace {
				found = append(found, path)
			}
		}
	}
	return found
}

// processes finds runtimes and guests, by their arguments and by their cgroups. The
// program itself and its clients do not count.
func (o *observer) processes() []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		args := strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
		ofRuntime := strings.Contains(args, "/run/wrenn/"+o.instance)
		if ofRuntime || strings.Contains(string(cgroup), "wrenn-"+o.instance) {
			found = append(found, filepath.Base(dir)+" "+args)
		}
	}
	return found
}

// slotParts finds the namespaces or links of slots that were ours and are not now
// another instance's.
func (o *observer) slotParts(k kind) []string {
	var found []string
	held := allLeases()
	for index := range o.indexes {
		if owner, taken := held[index]; taken && owner != o.instance {
			continue
		}
		if k == namespaces {
			found = append(found, globs(fmt.Sprintf("%s/wrenn-%d", namespaceDir, index))...)
		} else if link, err := netlink.LinkByName(fmt.Sprintf("wrn%d", index)); err == nil {
			found = append(found, link.Attrs().Name)
		}
	}
	return found
}

func (o *observer) mounts() []string {
	var found []string
	text, _ := os.ReadFile("/proc/self/mountinfo")
	held := allLeases()
	for line := range strings.Lines(string(text)) {
		const mountPoint = 4
		fields := strings.Fields(line)
		if len(fields) <= mountPoint {
			continue
		}
		at := fields[mountPoint]
		if filepath.Base(at) == sharedNamespace {
			continue
		}
		ours := strings.HasPrefix(at, o.dataDir) || strings.HasPrefix(at, "/run/wrenn/"+o.instance)
		for index := range o.indexes {
			if owner, taken := held[index]; !taken || owner == o.instance {
				ours = ours || at == fmt.Sprintf("%s/wrenn-%d", namespaceDir, index)
			}
		}
		if ours {
			found = append(found, at)
		}
	}
	return found
}

// firewall finds our table, or what is in those of its sets that name slots.
func (o *observer) firewall(k kind) []string {
	conn := &nftables.Conn{}
	all, err := conn.ListTables()
	if err != nil {
		return []string{err.Error()}
	}
	at := slices.IndexFunc(all, func(t *nftables.Table) bool { return t.Name == "wrenn_"+o.instance })
	if at < 0 {
		return nil
	}
	if k == tables {
		return []string{all[at].Name}
	}
	sets, err := conn.GetSets(all[at])
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, set := range sets {
		if set.Name == "closed" || set.Anonymous { // the same for all slots
			continue
		}
		inSet, err := conn.GetSetElements(set)
		if err != nil {
			return []string{err.Error()}
		}
		for _, e := range inSet {
			found = append(found, fmt.Sprintf("%s %q", set.Name, e.Key))
		}
	}
	return found
}

// requireTraces fails where the observer is blind: everything that a running sandbox must
// have, it must see.
func requireTraces(t *testing.T, o *observer) {
	t.Helper()
	for _, k := range everything {
		if k == overlays { // the file is unlinked while it is in use
			continue
		}
		if len(o.traces([]kind{k})) == 0 {
			t.Errorf("no %s of a running sandbox was found, so a leak would not be found either", k)
		}
	}
}

// requireClean fails when sandboxes left something.
func requireClean(t *testing.T, o *observer, kinds []kind) {
	t.Helper()
	if left := o.settled(kinds); len(left) > 0 {
		t.Errorf("left on the machine:\n  %s", strings.Join(left, "\n  "))
	}
}

// requireOnlyKnownFiles fails when the data directory has a file that no part of the
// program is known to keep.
func requireOnlyKnownFiles(t *testing.T, dataDir string) {
	t.Helper()
	known := []string{"credentials.json", "instance", "lock", "overlays", "sandboxes", "snapshots", "metrics"}
	err := filepath.WalkDir(dataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dataDir, path)
		ok := name == "." || slices.Contains(known, name) || strings.HasPrefix(name, "guest") || strings.HasPrefix(name, "runtimes") || strings.HasPrefix(name, "wrenn.db")
		if !ok {
			t.Errorf("the data directory has %s", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
