// Package system tests the whole program as its users see it: `wrenn up` on a port of its
// own, a plain HTTP client, the command line, and what is left on the machine afterwards.
// It must know nothing of the program but its contracts and the names that it leaves on a
// machine.
package system_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

const (
	// startLimit bounds a start that first has to build the base image.
	startLimit = 5 * time.Minute
	stopLimit  = 60 * time.Second

	// settleLimit bounds what follows from something else on a busy machine.
	settleLimit = 30 * time.Second
	pollEvery   = 20 * time.Millisecond
)

// program is one running `wrenn up`.
type program struct {
	url     string
	key     string
	dataDir string
	home    string // of the user who runs it, where the client profile goes
	bin     string
	logPath string
	seen    *observer

	cmd     *exec.Cmd
	exited  chan struct{} // closed when it has ended
	exitErr error         // valid after exited
}

// launch starts the program over dir, which may have been used before, and returns when
// it is ready. Unless flags say otherwise its sandboxes end with it.
func launch(t testing.TB, dir string, flags ...string) (*program, error) {
	p := &program{
		dataDir: filepath.Join(dir, "data"),
		home:    filepath.Join(dir, "home"),
		bin:     testenv.Bin(t, "wrenn"),
		logPath: filepath.Join(dir, "up.log"),
		exited:  make(chan struct{}),
	}
	if err := os.MkdirAll(p.home, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"up", "--listen", "127.0.0.1:0", "--data-dir", p.dataDir, "--image-dir", testenv.Images(t), "--on-stop", "kill"}
	p.cmd = exec.Command(p.bin, append(args, flags...)...)
	p.cmd.Env = append(os.Environ(), "HOME="+p.home, "XDG_CONFIG_HOME=")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// In a group of its own, so that Ctrl-C at the test is for the test, which stops it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.exitErr = p.cmd.Wait()
		close(p.exited)
	}()
	if err := p.awaitReady(); err != nil {
		_ = p.cmd.Process.Kill()
		<-p.exited
		return nil, fmt.Errorf("%w; its log:\n%s", err, p.log())
	}
	return p, nil
}

func (p *program) awaitReady() error {
	ready := func() bool {
		text, err := os.ReadFile(filepath.Join(p.dataDir, "credentials.json"))
		if err != nil {
			return false
		}
		var c struct {
			URL string `json:"api_url"`
			Key string `json:"api_key"`
		}
		if json.Unmarshal(text, &c) != nil || c.URL == "" {
			return false
		}
		p.url, p.key = c.URL, c.Key
		// The file may be of an earlier start, whose address nobody has now, or a stranger.
		for _, path := range []string{"/v1/sandboxes", "/readyz"} {
			ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
			a, err := p.try(ctx, http.MethodGet, path, nil)
			cancel()
			if err != nil || a.status != http.StatusOK {
				return false
			}
		}
		return true
	}
	deadline := time.After(startLimit)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !ready() {
		select {
		case <-p.exited:
			return fmt.Errorf("wrenn up ended: %w", errors.Join(p.exitErr, errors.New("before it was ready")))
		case <-deadline:
			return errors.New("wrenn up is not ready in time")
		case <-tick.C:
		}
	}
	instance, err := os.ReadFile(filepath.Join(p.dataDir, "instance"))
	if err != nil {
		return err
	}
	p.seen = &observer{instance: strings.TrimSpace(string(instance)), dataDir: p.dataDir, indexes: map[int]bool{}}
	return nil
}

// log returns the end of what the program wrote.
func (p *program) log() string {
	const most = 8 << 10
	text, _ := os.ReadFile(p.logPath)
	return string(text[max(0, len(text)-most):])
}

// stop ends the program as an init system does.
func (p *program) stop() error {
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return p.exitErr
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		<-p.exited
		return errors.New("wrenn up did not end on SIGTERM")
	}
}

// kill ends the program as a crash does.
func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// The one program that most tests share, so that each does not wait for a start.
var shared struct {
	once sync.Once
	dir  string
	p    *program
	err  error
}

func theProgram(t testing.TB) *program {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "wrenn-system-"); shared.err == nil {
			shared.p, shared.err = launch(t, shared.dir)
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	select {
	case <-shared.p.exited:
		t.Fatalf("wrenn up is gone (%v); its log:\n%s", shared.p.exitErr, shared.p.log())
	default:
	}
	return shared.p
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := endShared(); err != nil {
		fmt.Fprintln(os.Stderr, "after all tests:", err)
		code = 1
	}
	os.Exit(code)
}

// endShared stops the shared program and looks at what it leaves behind.
func endShared() error {
	if shared.p == nil {
		return os.RemoveAll(shared.dir)
	}
	shared.p.seen.look()
	var left []string
	err := shared.p.stop()
	if err == nil {
		left = shared.p.seen.settled(everything)
	}
	if err != nil || len(left) > 0 {
		return fmt.Errorf("stop: %w; left: %v; log in %s", errors.Join(err, errors.New("not clean")), left, shared.p.logPath)
	}
	return os.RemoveAll(shared.dir)
}

// eventually waits until what holds, or fails with what it last said.
func eventually(t testing.TB, limit time.Duration, holds func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("not within %v: %v", limit, err)
		case <-tick.C:
		}
	}
}

// peakMemory is the most memory that the program held since the last call, in bytes.
func (p *program) peakMemory(t testing.TB) int64 {
	t.Helper()
	peak := statusKiB(t, p.cmd.Process.Pid, "VmHWM:") << 10
	const forgetPeak = "5"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte(forgetPeak), 0); err != nil {
		t.Fatal(err)
	}
	return peak
}

func statusKiB(t testing.TB, pid int, field string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			var kib int64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatalf("process %d has no %s", pid, field)
	return 0
}

// openFiles is how many descriptors the program has.
func (p *program) openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// cli runs a client command of the program, and returns its output and exit code.
func (p *program) cli(t testing.TB, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.bin, args...)
	cmd.Env = append(os.Environ(), "WRENN_BASE_URL="+p.url, "WRENN_API_KEY="+p.key, "HOME="+p.home)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}
