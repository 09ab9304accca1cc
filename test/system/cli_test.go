package system_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCommandLine(t *testing.T) {
	p := theProgram(t)
	run := func(stdin io.Reader, wantCode int, args ...string) string {
		t.Helper()
		out, errOut, code := p.cli(t, stdin, args...)
		if code != wantCode {
			t.Errorf("wrenn %s: code %d, want %d\n%s%s", strings.Join(args, " "), code, wantCode, out, errOut)
		}
		if strings.Contains(errOut, "\x1b") || strings.Contains(errOut, "\r") {
			t.Errorf("wrenn %s draws where there is no terminal: %q", args[0], errOut)
		}
		return out
	}
	if got := run(nil, 0, "run", "--", "sh", "-c", "echo out; echo err >&2"); got != "out\n" {
		t.Errorf("run printed %q", got)
	}
	run(nil, 7, "run", "--", "sh", "-c", "exit 7")
	const killed = 128 + int(unix.SIGKILL)
	run(nil, killed, "run", "--", "sh", "-c", "kill -9 $$")
	if got := run(strings.NewReader("through"), 0, "run", "--", "cat"); got != "through" {
		t.Errorf("run passed %q", got)
	}
	const failed = 125
	run(nil, failed, "run", "--", "no-such-command")
	run(nil, failed, "exec", "sb"+strings.Repeat("0", 20), "--", "true")
	run(nil, 2, "run", "--no-such-flag")
	requireClean(t, p.seen, ofSandboxes) // run destroys what it made

	var made struct{ ID, Status string }
	if err := json.Unmarshal([]byte(run(nil, 0, "create", "--json")), &made); err != nil || made.Status != "running" {
		t.Fatal(made, err)
	}
	p.seen.look()
	if got := run(nil, 0, "exec", made.ID, "--", "pwd"); got != "/home/wrenn-user\n" {
		t.Errorf("exec printed %q", got)
	}
	if got := run(nil, 0, "ls"); !strings.Contains(got, made.ID) {
		t.Errorf("ls printed %q", got)
	}
	var list []struct{ ID string }
	if err := json.Unmarshal([]byte(run(nil, 0, "ls", "--json")), &list); err != nil || len(list) != 1 || list[0].ID != made.ID {
		t.Errorf("ls --json: %v, %v", list, err)
	}
	copyBothWays(t, run, made.ID)
	run(nil, 0, "rm", made.ID)
	run(nil, failed, "exec", made.ID, "--", "true")
	requireClean(t, p.seen, ofSandboxes)
}

func copyBothWays(t *testing.T, run func(io.Reader, int, ...string) string, id string) {
	t.Helper()
	dir := t.TempDir()
	const size = 5*mib + 1
	contents, err := io.ReadAll(newNoise(size))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "one"), contents, 0o600); err != nil {
		t.Fatal(err)
	}
	run(nil, 0, "cp", filepath.Join(dir, "one"), id+":two")
	run(nil, 0, "cp", id+":/home/wrenn-user/two", filepath.Join(dir, "three"))
	back, err := os.ReadFile(filepath.Join(dir, "three"))
	if err != nil || !bytes.Equal(back, contents) {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	if got := run(nil, 0, "cp", id+":two", "-"); sha256.Sum256([]byte(got)) != sha256.Sum256(contents) {
		t.Errorf("%d bytes came to stdout", len(got))
	}
}

// The profile that `wrenn up` writes is enough to find the server.
func TestProfile(t *testing.T) {
	p := theProgram(t)
	cmd := exec.CommandContext(t.Context(), p.bin, "ls", "--json")
	cmd.Env = []string{"HOME=" + p.home, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "[]" {
		t.Errorf("%v: %s", err, out)
	}
	info, err := os.Stat(filepath.Join(p.dataDir, "credentials.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the credentials: %v, %v", info.Mode(), err)
	}
}

// Ctrl-C at a run destroys its sandbox.
func TestInterruptedRun(t *testing.T) {
	p := theProgram(t)
	cmd := exec.Command(p.bin, "run", "--", "sh", "-c", "echo started; sleep 1000")
	cmd.Env = append(os.Environ(), "WRENN_BASE_URL="+p.url, "WRENN_API_KEY="+p.key, "HOME="+p.home)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	line := make([]byte, len("started"))
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatal(err)
	}
	p.seen.look()
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Logf("the run ended with %v", err)
	case <-time.After(settleLimit):
		t.Fatal("Ctrl-C did not end the run")
	}
	requireClean(t, p.seen, ofSandboxes)
}
