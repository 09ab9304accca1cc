// Package sdk drives one guest daemon with the published npm package e2b, unmodified and in
// its debug mode, in which it speaks to port 49983 of its own machine. What the SDK does is
// in the files *.test.mjs; this package gives each of them a machine that nothing else uses.
//
// It must not know the daemon's code: it sees the built program and its port.
package sdk

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

// limit bounds one file of tests.
const limit = 3 * time.Minute

// How the test program that is started in the namespaces is told what to do.
const (
	envInside  = "WRENN_TEST_SDK_INSIDE"
	envEnvd    = "WRENN_TEST_SDK_ENVD"
	envNode    = "WRENN_TEST_SDK_NODE"
	envScratch = "WRENN_TEST_SDK_SCRATCH"
)

func TestMain(m *testing.M) {
	if file := os.Getenv(envInside); file != "" {
		os.Exit(inside(file))
	}
	os.Exit(m.Run())
}

func TestCommands(t *testing.T)   { drive(t, "commands.test.mjs") }
func TestBackground(t *testing.T) { drive(t, "background.test.mjs") }
func TestTerminals(t *testing.T)  { drive(t, "pty.test.mjs") }
func TestFiles(t *testing.T)      { drive(t, "files.test.mjs") }
func TestWatch(t *testing.T)      { drive(t, "watch.test.mjs") }
func TestSignedURLs(t *testing.T) { drive(t, "urls.test.mjs") }

// drive runs one file of tests against a fresh daemon. Both are in namespaces of their own:
// the port is free whatever this machine runs, accounts can be made up, and every process is
// gone when the first one is.
func drive(t *testing.T, file string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes namespaces and mounts: run it as root")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("%v; install Node 20 or newer", err)
	}
	if _, err := os.Stat(filepath.Join("node_modules", "e2b", "package.json")); err != nil {
		t.Fatalf("%v; `make test/sdk/node_modules` installs it", err)
	}
	scratch, err := os.MkdirTemp("", "wrenn-sdk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(scratch); err != nil { // it is empty here: what it held was mounted inside
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), envInside + "=" + file, envEnvd + "=" + testenv.Bin(t, "envd"),
		envNode + "=" + node, envScratch + "=" + scratch,
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if err != nil {
		t.Fatalf("%s: %v (%v)\n%s", file, err, context.Cause(ctx), out.Bytes())
	}
	checkTally(t, file, out.String())
}

// checkTally fails when fewer tests have passed than the file has: a run in which nothing
// ran ends well, too.
func checkTally(t *testing.T, file, out string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Count(string(text), "\ntest(")
	found := regexp.MustCompile(`(?m)^# pass (\d+)$`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("%s: no tally in\n%s", file, out)
	}
	if got, _ := strconv.Atoi(found[1]); got != want || want == 0 {
		t.Fatalf("%s: %d of %d tests passed\n%s", file, got, want, out)
	}
	t.Logf("%s: %d tests passed", file, want)
}
