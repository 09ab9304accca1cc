package main

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/guest/rpc"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// asDaemon makes this test program envd itself.
const asDaemon = "WRENN_TEST_ENVD"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// patience bounds how long a test waits for something to come true.
const patience = 10 * time.Second

func daemon(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = []string{asDaemon + "=1", "PATH=" + defaultPath}
	return cmd
}

// serving starts cmd and returns the address that its log tells.
func serving(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address := regexp.MustCompile(`address=(127\.0\.0\.1:\d+)`)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if found := address.FindStringSubmatch(lines.Text()); found != nil {
			go func() {
				for lines.Scan() { // or the daemon would wait for its log to be read
				}
			}()
			return "http://" + found[1]
		}
		t.Log(lines.Text())
	}
	t.Fatalf("no address in the log: %v", lines.Err())
	return ""
}

func initialize(t *testing.T, url, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/init", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("init: %s", resp.Status)
	}
}

// shell runs a script in the sandbox and returns what it prints.
func shell(t *testing.T, url, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := processconnect.NewProcessClient(http.DefaultClient, url)
	stream, err := client.Start(ctx, connect.NewRequest(&processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var out strings.Builder
	for stream.Receive() {
		data := stream.Msg().GetEvent().GetData()
		out.Write(data.GetStdout())
		out.Write(data.GetStderr())
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestVersion(t *testing.T) {
	out, err := daemon(t, "/proc/self/exe", "--version").Output()
	if err != nil || string(out) != rpc.Version+"\n" {
		t.Errorf("%q, %v", out, err)
	}
	for _, args := range [][]string{{"stray"}, {"--listen", "nowhere"}, {"--no-such-flag"}} {
		err := daemon(t, append([]string{"/proc/self/exe"}, args...)...).Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() == 0 {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestServesAndStops(t *testing.T) {
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	cmd := daemon(t, "/proc/self/exe", "--listen", "127.0.0.1:0")
	url := serving(t, cmd)
	// On a machine that is no sandbox nothing of it is changed.
	initialize(t, url, `{"hostname":"never","nameservers":["192.0.2.1"],"sandboxID":"never"}`)
	if got := strings.TrimSpace(shell(t, url, "hostname; umask")); got != hostname+"\n0022" {
		t.Errorf("got %q", got)
	}
	if conf, err := os.ReadFile("/etc/resolv.conf"); err == nil && strings.Contains(string(conf), "192.0.2.1") {
		t.Error("the machine's own resolver was changed")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("a stop that was asked for: %v", err)
	}
}

// sandboxed is a script that makes a place where the daemon can be the first process and
// change what it likes: namespaces and file systems of its own.
const sandboxed = `set -e
mount --make-rprivate /
mkdir "$1/etc"
cp /etc/passwd /etc/group "$1/etc"
printf '127.0.0.1 localhost\n' > "$1/etc/hosts"
mount -t tmpfs none /run
mount --bind "$1/etc" /etc
mount -t proc none /proc
exec /proc/self/fd/3 --listen 127.0.0.1:0`

func TestAsTheFirstProcess(t *testing.T) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	dir := t.TempDir()
	cmd := daemon(t, "/bin/sh", "-c", sandboxed, "sh", dir)
	cmd.ExtraFiles = []*os.File{self}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	url := serving(t, cmd)

	initialize(t, url, `{"hostname":"box","nameservers":["10.0.0.1"],"sandboxID":"sb1","templateID":"base"}`)
	for script, want := range map[string]string{
		"hostname": "box\n",
		"cat /etc/resolv.conf /run/wrenn/sandbox-id /run/wrenn/template-id": "nameserver 10.0.0.1\nsb1\nbase\n",
		"grep box /etc/hosts":  "127.0.1.1\tbox\n",
		"echo $E2B_SANDBOX_ID": "sb1\n",
	} {
		if got := shell(t, url, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// Orphans come to the first process, and must not stay zombies.
	shell(t, url, "for i in 1 2 3 4 5 6 7 8; do (sleep 0.05 & ); done")
	deadline, tick := time.After(patience), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		left := shell(t, url, "ps -o pid=,stat=,comm= --ppid 1 | grep -v ' sh$' || true")
		if left == "" {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("children of the first process: %q", left)
		}
	}
}
