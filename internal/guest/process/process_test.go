package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// helperEnv makes this test program another one; see TestOrphansAreReaped.
const helperEnv = "WRENN_TEST_SUBREAPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		if err := runSubreaper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// patience bounds how long a test waits for something to come true.
const patience = 10 * time.Second

// eventually fails the test unless ok comes true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := await(what, ok); err != nil {
		t.Fatal(err)
	}
}

func contextWithPatience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

func await(what string, ok func() bool) error {
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("%s: not so after %v", what, patience)
		}
	}
	return nil
}

func newManager(t *testing.T) *Manager {
	t.Helper()
	// As the first process of a sandbox the test has orphans to reap.
	m := NewManager(Config{Logger: slog.New(slog.DiscardHandler), ReapOrphans: os.Getpid() == 1})
	t.Cleanup(func() {
		m.Close()
		if left := children(t); len(left) > 0 {
			t.Errorf("processes left behind: %v", left)
		}
	})
	return m
}

// children returns the pids of this program's children, zombies among them.
func children(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			pids = append(pids, strings.Fields(string(data))...)
		}
	}
	return pids
}

func shell(script string) Spec {
	return Spec{Cmd: "/bin/sh", Args: []string{"-c", script}, Dir: "/", Env: []string{"PATH=" + defaultPath}, User: User{Name: "root"}}
}

// result is all that a process said.
type result struct {
	stdout, stderr bytes.Buffer
	terminal       bytes.Buffer
	end            End
}

func collect(t *testing.T, sub *Subscription) *result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	r, ended := &result{}, false
	for {
		ev, err := sub.Next(ctx, 0)
		if errors.Is(err, io.EOF) && ended {
			return r
		}
		if err != nil || ended {
			t.Fatalf("next: %v (ended %v, event %+v)", err, ended, ev)
		}
		switch ev.Kind {
		case Stdout:
			r.stdout.Write(ev.Data)
		case Stderr:
			r.stderr.Write(ev.Data)
		case Terminal:
			r.terminal.Write(ev.Data)
		case Ended:
			r.end, ended = ev.End, true
		}
		ev.Release()
	}
}

func start(t *testing.T, m *Manager, spec Spec) (*Process, *Subscription) {
	t.Helper()
	p, sub, err := m.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sub.Close)
	return p, sub
}

func TestRun(t *testing.T) {
	m := newManager(t)
	for _, c := range []struct {
		script string
		want   End
	}{
		{"exit 0", End{Exited: true, Status: "exit status 0"}},
		{"exit 7", End{ExitCode: 7, Exited: true, Status: "exit status 7"}},
		{"kill -9 $$", End{ExitCode: -1, Status: "signal: killed"}},
		{"kill -15 $$", End{ExitCode: -1, Status: "signal: terminated"}},
	} {
		_, sub := start(t, m, shell("echo out; echo err >&2; "+c.script))
		r := collect(t, sub)
		if r.stdout.String() != "out\n" || r.stderr.String() != "err\n" || r.end != c.want {
			t.Errorf("%s: %q %q %+v", c.script, &r.stdout, &r.stderr, r.end)
		}
	}
	if left := m.List(); len(left) > 0 {
		t.Errorf("ended processes are still listed: %d", len(left))
	}
}

func TestFastExitsAreNeverLost(t *testing.T) {
	m := newManager(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				_, sub, err := m.Start(t.Context(), shell("exit 3"))
				if err != nil {
					t.Error(err)
					return
				}
				if r := collect(t, sub); r.end.ExitCode != 3 {
					t.Errorf("end %+v", r.end)
				}
				sub.Close()
			}
		})
	}
	wg.Wait()
}

func TestRefusals(t *testing.T) {
	m := newManager(t)
	dir := t.TempDir()
	for name, content := range map[string]string{"noexec": "", "text": "hello", "noint": "#!/no/such\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir+"/text", 0o755), os.Chmod(dir+"/noint", 0o755), os.Mkdir(dir+"/closed", 0o700)); err != nil {
		t.Fatal(err)
	}
	for says, change := range map[string]func(*Spec){
		"command is empty":             func(s *Spec) { s.Cmd = "" },
		"NUL bytes":                    func(s *Spec) { s.Args = []string{"a\x00"} },
		"environment variable":         func(s *Spec) { s.Env = []string{"A=\x00"} },
		"'no-such' not found in PATH":  func(s *Spec) { s.Cmd = "no-such" },
		"'/no/such' not found":         func(s *Spec) { s.Cmd = "/no/such" },
		"cwd '/no/dir' does not exist": func(s *Spec) { s.Dir = "/no/dir" },
		"is not a directory":           func(s *Spec) { s.Dir = dir + "/text" },
		"not an executable file":       func(s *Spec) { s.Cmd = dir + "/noexec" },
		"'/etc' is not an executable":  func(s *Spec) { s.Cmd = "/etc" },
		"not a program":                func(s *Spec) { s.Cmd = dir + "/text" },
		"its interpreter":              func(s *Spec) { s.Cmd = dir + "/noint" },
		"not enter cwd":                func(s *Spec) { s.Dir = dir + "/closed"; s.User = User{Name: "nobody", UID: 65534, GID: 65534} },
		"too long":                     func(s *Spec) { s.Args = []string{strings.Repeat("x", 8<<20)} },
	} {
		spec := shell("true")
		change(&spec)
		_, _, err := m.Start(t.Context(), spec)
		if !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), says) {
			t.Errorf("want an invalid request that says %q, got %v", says, err)
		}
	}
	before := openFiles(t)
	for range 20 {
		spec := shell("true")
		spec.Cmd, spec.Stdin = dir+"/noint", true
		_, _, _ = m.Start(t.Context(), spec)
	}
	if after := openFiles(t); after > before {
		t.Errorf("failed starts leak files: %d, then %d", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A daemon that can open no more files says so, whatever it was opening, and leaks none.
func TestOutOfFiles(t *testing.T) {
	m := newManager(t)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
	run := func(spec Spec) error {
		_, sub, err := m.Start(t.Context(), spec)
		if err != nil {
			return err
		}
		defer sub.Close()
		if r := collect(t, sub); r.end.ExitCode != 0 {
			t.Errorf("end %+v", r.end)
		}
		return nil
	}
	for _, spec := range []Spec{shell("true"), terminal("true")} {
		if err := run(spec); err != nil { // so that what is opened once is open
			t.Fatal(err)
		}
		before := openFiles(t)
		refused, started := 0, false
		for room := uint64(0); !started; room++ {
			limit := was
			limit.Cur = uint64(highestFile(t)) + 1 + room
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				t.Fatal(err)
			}
			err := run(spec)
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
				t.Fatal(err)
			}
			switch {
			case err == nil:
				started = true
			case !fault.Is(err, fault.RateLimited) || !strings.Contains(fault.MessageOf(err), "too many processes"):
				t.Fatalf("with room for %d files: %v", room, err)
			default:
				refused++
			}
		}
		if after := openFiles(t); refused == 0 || after > before {
			t.Errorf("refused %d times, %d files before and %d after", refused, before, after)
		}
	}
}

// highestFile returns the highest descriptor below which all are in use.
func highestFile(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	return fd - 1
}

func TestIdentityOfAProcess(t *testing.T) {
	m := newManager(t)
	spec := shell("id -u; id -g; id -G; pwd; umask; ps -o pid=,pgid=,sid= -p $$; echo $$")
	spec.Dir, spec.User = "/tmp", User{Name: "nobody", UID: 65534, GID: 65533, Groups: []uint32{7, 9}}
	p, sub := start(t, m, spec)
	r := collect(t, sub)
	lines := strings.Split(r.stdout.String(), "\n")
	if len(lines) < 7 || lines[0] != "65534" || lines[1] != "65533" || lines[2] != "65533 7 9" || lines[3] != "/tmp" {
		t.Fatalf("got %q %q", lines, &r.stderr)
	}
	want := fmt.Sprint(p.PID())
	if ids := strings.Fields(lines[5]); len(ids) != 3 || ids[0] != want || ids[1] != want || ids[2] != want || lines[6] != want {
		t.Errorf("pid, group and session are %q, want all %s", lines[5], want)
	}
}

func TestStdin(t *testing.T) {
	m := newManager(t)
	spec := shell("cat; echo over")
	spec.Stdin = true
	p, sub := start(t, m, spec)
	big := bytes.Repeat([]byte("0123456789"), 30_000) // more than the pipe holds
	done := make(chan error, 1)
	go func() {
		done <- errors.Join(p.WriteStdin(t.Context(), big), p.WriteStdin(t.Context(), nil), p.CloseStdin(), p.CloseStdin())
	}()
	r := collect(t, sub)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := string(big) + "over\n"; r.stdout.String() != want {
		t.Errorf("got %d bytes, want %d", r.stdout.Len(), len(want))
	}
	if err := p.WriteStdin(t.Context(), []byte("x")); !fault.Is(err, fault.Internal) {
		t.Errorf("writing to a closed stdin: %v", err)
	}

	_, sub = start(t, m, shell("cat; echo over"))
	if r := collect(t, sub); r.stdout.String() != "over\n" {
		t.Errorf("without stdin: %q", &r.stdout)
	}
}

func TestWritingToAProcessThatDoesNotReadCanBeCanceled(t *testing.T) {
	m := newManager(t)
	spec := shell("sleep 60")
	spec.Stdin = true
	p, _ := start(t, m, spec)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.WriteStdin(ctx, make([]byte, 1<<20)) }()
	eventually(t, "the pipe is full", func() bool {
		queued := 0
		raw, err := p.files.stdin.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		}
		return err == nil && queued > 0
	})
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the write goes on")
	}
}

func TestSignalReachesTheGroup(t *testing.T) {
	m := newManager(t)
	p, sub := start(t, m, shell("sleep 300 & echo $!; wait"))
	ev, err := sub.Next(t.Context(), patience)
	if err != nil || ev.Kind != Stdout {
		t.Fatalf("%+v, %v", ev, err)
	}
	var grandchild int
	if _, err := fmt.Sscan(string(ev.Data), &grandchild); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, sub); r.end.Status != "signal: terminated" {
		t.Errorf("end %+v", r.end)
	}
	eventually(t, "the grandchild is gone", func() bool { return !running(grandchild) })
	if err := p.Signal(unix.SIGTERM); !fault.Is(err, fault.NotFound) {
		t.Errorf("signalling what has ended: %v", err)
	}
}

// running says whether pid is there and not a zombie.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestLimit(t *testing.T) {
	m := newManager(t)
	spec := shell("echo before; sleep 300 & sleep 300")
	spec.Limit = 150 * time.Millisecond
	began := time.Now()
	p, sub := start(t, m, spec)
	r := collect(t, sub)
	if !r.end.TimedOut || r.end.ExitCode != -1 || r.stdout.String() != "before\n" {
		t.Errorf("%+v %q", r.end, &r.stdout)
	}
	if took := time.Since(began); took < spec.Limit {
		t.Errorf("killed after %v already", took)
	}
	if _, err := m.Find(Selector{PID: p.PID()}); !fault.Is(err, fault.NotFound) {
		t.Errorf("still found: %v", err)
	}
	spec = shell("exit 0")
	spec.Limit = time.Hour
	_, sub = start(t, m, spec)
	if r := collect(t, sub); r.end.TimedOut || r.end.ExitCode != 0 {
		t.Errorf("in time: %+v", r.end)
	}
}

func TestEndDoesNotWaitForABackgroundProcess(t *testing.T) {
	m := newManager(t)
	dir := t.TempDir()
	began := time.Now()
	_, sub := start(t, m, shell("(echo $$ > "+dir+"/bg; while [ ! -e "+dir+"/stop ]; do echo noise; sleep 0.01; done; echo alive > "+dir+"/end) & printf x%.0s $(seq 5000); exit 4"))
	r := collect(t, sub)
	if took := time.Since(began); took > patience/2 {
		t.Errorf("the end came after %v", took)
	}
	if r.end.ExitCode != 4 || strings.Count(r.stdout.String(), "x") != 5000 {
		t.Errorf("%+v, %d of 5000 characters", r.end, strings.Count(r.stdout.String(), "x"))
	}
	// It must live on, with nobody at the other end of its pipe.
	if err := os.WriteFile(dir+"/stop", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the background process came to its end by itself", func() bool {
		_, err := os.Stat(dir + "/end")
		return err == nil
	})
	eventually(t, "its pipes are given back", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.lingering) == 0
	})
}

func TestTagsFindTheNewest(t *testing.T) {
	m := newManager(t)
	tag := "server"
	spec := shell("sleep 60")
	spec.Tag = &tag
	start(t, m, spec)
	newest, _ := start(t, m, spec)
	if p, err := m.Find(Selector{Tag: &tag}); err != nil || p != newest {
		t.Errorf("found %v, %v", p, err)
	}
	other := "none"
	if _, err := m.Find(Selector{Tag: &other}); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown tag: %v", err)
	}
	if list := m.List(); len(list) != 2 || list[1] != newest {
		t.Errorf("list %v", list)
	}
	if _, _, err := m.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if _, _, err := m.Start(t.Context(), spec); !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("starting after the end: %v", err)
	}
}
