package cli

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

func makeFIFO(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

// soundMachine lacks nothing.
func soundMachine() *machine {
	return &machine{
		os: "linux", uid: 0, binDir: "/opt/wrenn", dataDir: "/data",
		files: fstest.MapFS{
			"proc/sys/kernel/osrelease":        file("6.1.0\n"),
			"proc/sys/net/ipv4/ip_forward":     file("1\n"),
			"proc/meminfo":                     file("MemTotal: 9 kB\nMemAvailable:   8388608 kB\n"),
			"sys/fs/cgroup/cgroup.controllers": file("cpuset cpu io memory pids\n"),
			"opt/wrenn/runsc":                  file("x"),
			"opt/wrenn/envd":                   file("x"),
		},
		lookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil },
		nftables: func() error { return nil },
		free:     func(string) (uint64, error) { return 100 << 30, nil },
	}
}

// noServer keeps the profile of whoever runs the tests out of them.
func noServer(t *testing.T) {
	t.Setenv("WRENN_BASE_URL", "")
	t.Setenv("WRENN_API_KEY", "")
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
}

func TestDoctorFindsASoundMachineSound(t *testing.T) {
	noServer(t)
	d := diagnose(t.Context(), soundMachine())
	if !d.OK {
		t.Error("it cannot run Wrenn")
	}
	for _, f := range d.Checks {
		if f.Status != good || f.Fix != "" || f.Detail == "" {
			t.Errorf("%+v", f)
		}
	}
}

func TestDoctorFindsWhatIsLacking(t *testing.T) {
	noServer(t)
	broken := errors.New("broken")
	without := func(paths ...string) func(*machine) {
		return func(m *machine) {
			for _, path := range paths {
				delete(m.files.(fstest.MapFS), path)
			}
		}
	}
	with := func(path, text string) func(*machine) {
		return func(m *machine) { m.files.(fstest.MapFS)[path] = file(text) }
	}
	for name, test := range map[string]struct {
		spoil  func(*machine)
		check  string
		status verdict
		says   string
	}{
		"another system": {func(m *machine) { m.os = "darwin" }, "Linux", lacking, "darwin"},
		"not root":       {func(m *machine) { m.uid = 1000 }, "root", lacking, "uid 1000"},
		"no envd":        {without("opt/wrenn/envd"), "envd", lacking, "not beside"},
		"no runsc": {func(m *machine) {
			without("opt/wrenn/runsc")(m)
			m.lookPath = func(name string) (string, error) {
				if name == "runsc" {
					return "", exec.ErrNotFound
				}
				return name, nil
			}
		}, "runsc", lacking, "not beside"},
		"runsc in the PATH": {without("opt/wrenn/runsc"), "runsc", good, "/usr/bin/runsc"},
		"no bootstrap": {func(m *machine) {
			m.lookPath = func(string) (string, error) { return "", exec.ErrNotFound }
		}, "mmdebstrap", lacking, "not installed"},
		"no nftables":         {func(m *machine) { m.nftables = func() error { return broken } }, "nftables", lacking, "broken"},
		"forwarding off":      {with("proc/sys/net/ipv4/ip_forward", "0\n"), "ip_forward", poor, "off"},
		"no IPv4":             {without("proc/sys/net/ipv4/ip_forward"), "ip_forward", lacking, ""},
		"no pids controller":  {with("sys/fs/cgroup/cgroup.controllers", "cpu memory"), "cgroups", lacking, "v2 without pids"},
		"no cgroups":          {without("sys/fs/cgroup/cgroup.controllers"), "cgroups", lacking, ""},
		"little disk":         {func(m *machine) { m.free = func(string) (uint64, error) { return 5 << 30, nil } }, "disk", poor, "5.0 GiB free at /data"},
		"no disk":             {func(m *machine) { m.free = func(string) (uint64, error) { return 1, nil } }, "disk", lacking, "0.0 GiB"},
		"no answer of a disk": {func(m *machine) { m.free = func(string) (uint64, error) { return 0, broken } }, "disk", poor, "broken"},
		"little memory":       {with("proc/meminfo", "MemAvailable: 1048576 kB\n"), "memory", poor, "1.0 GiB available"},
		"no memory":           {with("proc/meminfo", "MemAvailable: 1024 kB\n"), "memory", lacking, ""},
		"strange memory":      {with("proc/meminfo", "MemAvailable: much\n"), "memory", poor, ""},
		"cgroup v1": {func(m *machine) {
			without("sys/fs/cgroup/cgroup.controllers")(m)
			for _, c := range []string{"memory", "cpu,cpuacct", "pids"} {
				with("sys/fs/cgroup/"+c+"/tasks", "")(m)
			}
		}, "cgroups", good, "v1 with"},
	} {
		t.Run(name, func(t *testing.T) {
			m := soundMachine()
			test.spoil(m)
			d := diagnose(t.Context(), m)
			if d.OK != (test.status != lacking) {
				t.Errorf("ok is %v", d.OK)
			}
			for _, f := range d.Checks {
				if f.Name != test.check {
					continue
				}
				if f.Status != test.status || !strings.Contains(f.Detail, test.says) {
					t.Errorf("%+v", f)
				}
				if (f.Fix == "") != (f.Status == good) {
					t.Errorf("a fix belongs to what is not well, and only to that: %+v", f)
				}
				return
			}
			t.Errorf("no check %s", test.check)
		})
	}
}

func TestDoctorAsksTheServer(t *testing.T) {
	noServer(t)
	s := newFakeServer(t.TempDir())
	t.Setenv("WRENN_BASE_URL", s.url())
	t.Setenv("WRENN_API_KEY", fakeKey)
	m := soundMachine()
	if f := m.server(t.Context()); f.Status != good || !strings.Contains(f.Detail, "ready at http") {
		t.Errorf("%+v", f)
	}
	s.close()
	if f := m.server(t.Context()); f.Status != poor || f.Fix == "" {
		t.Errorf("a server that is gone: %+v", f)
	}
}

func TestThisMachineIsLookedAt(t *testing.T) {
	noServer(t)
	m := thisMachine("/no/such/place")
	if f := m.system(context.Background()); f.Status != good {
		t.Errorf("%+v", f)
	}
	if f := m.disk(context.Background()); f.Status == poor && strings.Contains(f.Detail, "no such file") {
		t.Errorf("a data directory that is yet to be made: %+v", f)
	}
}
