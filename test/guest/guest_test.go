// Package guest runs the tests of the guest daemon's packages where the daemon itself runs:
// inside a real sandbox, whose kernel is gVisor's and not Linux.
//
// It must not know what they test. A test that cannot hold in the sandbox says so itself, by
// looking for what it lacks there.
package guest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/host/child"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/gvisor"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

const (
	sandboxID  = "sbguest"
	instance   = "90e57001"
	packages   = "github.com/wrenn-sandbox/wrenn/internal/guest/..."
	mountPoint = "/run/wrenn/bin"
	envdPort   = "49983"
	path       = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// notInTheImage are programs that tests want and the base image does not have.
	notInTheImage = "ssh-keygen"

	// limit bounds the tests of one package in the sandbox, patience all else.
	limit    = 90 * time.Second
	patience = 20 * time.Second
	tick     = 5 * time.Millisecond
)

func TestGuestPackagesInASandbox(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a sandbox: run it as root")
	}
	reaping, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	if err := child.Reap(reaping); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	programs := compile(t, dir)
	address := boot(t, dir)
	client := reach(t, address)
	t.Run("trust", func(t *testing.T) { tellOfAuthority(t, client, address) })
	for _, program := range programs {
		t.Run(strings.TrimSuffix(program, ".test"), func(t *testing.T) { runProgram(t, client, program) })
	}
}

// compile makes the test program of each package, and returns their names.
func compile(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir+"/", packages)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile the tests: %v\n%s", err, out)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.test"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no test programs in %s, %v", dir, err)
	}
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return found
}

// boot starts a sandbox that sees the programs in dir, and returns the address of its daemon.
func boot(t *testing.T, dir string) string {
	t.Helper()
	// The path of a control socket is limited to 107 bytes; a test's directory is not.
	runDir, err := os.MkdirTemp("/run", "wrenn-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(runDir); err != nil {
			t.Error(err)
		}
	})
	driver, err := gvisor.New(gvisor.Config{
		Binary: testenv.Bin(t, "runsc"), ProgramsDir: t.TempDir(), RunDir: runDir, OverlayDir: t.TempDir(),
		CgroupParent: filepath.Base(runDir), Log: slog.Default(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Close(); err != nil {
			t.Error(err)
		}
	})
	slot := newSlot(t)
	images, err := image.Open(testenv.Images(t))
	if err != nil {
		t.Fatal(err)
	}
	base, err := images.EnsureBase(t.Context(), func(image.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	envd, err := os.ReadFile(testenv.Bin(t, "envd"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "envd"), envd, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Destroy(context.Background(), sandboxID); err != nil {
			t.Error(err)
		}
	})
	err = driver.Start(t.Context(), runtime.Spec{
		ID: sandboxID, Hostname: sandboxID, RootFS: base.Path,
		Args:      []string{mountPoint + "/envd"},
		Env:       []string{"PATH=" + path},
		Mounts:    []runtime.Mount{{Source: dir, Target: mountPoint}},
		Namespace: slot.Namespace,
		Limits:    runtime.Limits{VCPUs: 2, MemoryMB: 1024, DiskMB: 1024, Processes: 1024},
	})
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(slot.Guest.Addr().String(), envdPort)
}

func newSlot(t *testing.T) network.Slot {
	t.Helper()
	slots, err := network.Open(t.Context(), network.Config{Instance: instance, DataDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slots.Close(); err != nil {
			t.Error(err)
		}
	})
	slot, err := slots.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slots.Release(context.Background(), slot); err != nil {
			t.Error(err)
		}
	})
	return slot
}

// reach returns a client of the daemon at address as soon as that answers.
func reach(t *testing.T, address string) processconnect.ProcessClient {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := processconnect.NewProcessClient(&http.Client{Transport: transport}, "http://"+address)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		_, err := client.List(ctx, connect.NewRequest(&process.ListRequest{}))
		if err == nil {
			return client
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("the daemon does not answer: %v", err)
		}
	}
}

// runProgram runs the tests of one package as root of the sandbox, and fails as they do.
func runProgram(t *testing.T, client processconnect.ProcessClient, program string) {
	began := time.Now()
	cwd := "/tmp"
	out, status := run(t, client, &process.ProcessConfig{
		Cmd: filepath.Join(mountPoint, program), Cwd: &cwd,
		Envs: map[string]string{"WRENN_TEST_WITHOUT": notInTheImage},
		Args: []string{"-test.v", "-test.short", "-test.timeout=" + limit.String()},
	})
	if status != "exit status 0" {
		t.Fatalf("%s\n%s", status, out)
	}
	// A program in which nothing ran ends well, too.
	passed := len(regexp.MustCompile(`(?m)^--- PASS: `).FindAllString(out, -1))
	if passed == 0 {
		t.Fatalf("no test has passed:\n%s", out)
	}
	skipped := regexp.MustCompile(`(?m)^(?:    .*\n)?--- SKIP: .*\n(?:    .*\n)?`).FindAllString(out, -1)
	t.Log(fmt.Sprintf("%d passed in %v, %d skipped\n", passed, time.Since(began).Round(time.Millisecond), len(skipped)) + strings.Join(skipped, ""))
}

// run runs one command, and returns all that it printed and how it ended.
func run(t *testing.T, client processconnect.ProcessClient, config *process.ProcessConfig) (output, status string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit+patience)
	defer cancel()
	noStdin := false
	stream, err := client.Start(ctx, connect.NewRequest(&process.StartRequest{Process: config, Stdin: &noStdin}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var out strings.Builder
	var end *process.ProcessEvent_EndEvent
	for stream.Receive() {
		event := stream.Msg().GetEvent()
		out.Write(event.GetData().GetStdout())
		out.Write(event.GetData().GetStderr())
		if event.GetEnd() != nil {
			end = event.GetEnd()
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return out.String(), end.GetStatus()
}
