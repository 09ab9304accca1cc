package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// imagesEnv names a directory of images that tests share, so that the base is built once.
const imagesEnv = "WRENN_TEST_IMAGES"

const (
	buildLimit  = 5 * time.Minute
	cancelLimit = 30 * time.Second
)

// needBuildTools skips a test in a short run, and fails it where no image can be built.
func needBuildTools(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("building an image needs minutes")
	}
	if os.Geteuid() != 0 {
		t.Fatal("run this test as root: it builds an image")
	}
	for _, tool := range []string{"mmdebstrap", "mkfs.erofs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed; scripts/setup installs it", tool)
		}
	}
}

func TestBaseImageHasWhatIsPromised(t *testing.T) {
	needBuildTools(t)
	dir := os.Getenv(imagesEnv)
	if dir == "" {
		dir = t.TempDir()
	}
	store, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
	defer cancel()
	img, err := store.EnsureBase(ctx, func(p Progress) { t.Logf("%d/%d %s", p.Done, p.Total, p.Step) })
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	again, err := store.EnsureBase(ctx, func(p Progress) { t.Errorf("a current image was built again: %s", p.Step) })
	if err != nil || again != img {
		t.Fatalf("the second EnsureBase gave %+v, %v", again, err)
	}
	t.Logf("a current image was found in %v", time.Since(began))
	found, err := store.Lookup(baseName)
	if err != nil || found != img || img.DefaultUser != "wrenn-user" || !filepath.IsAbs(img.Path) {
		t.Fatalf("Lookup gave %+v, %v; EnsureBase gave %+v", found, err, img)
	}
	checkContent(t, mountImage(t, img.Path))
}

// mountImage mounts an image and returns where.
func mountImage(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount the image: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the image: %v", err)
		}
	})
	return dir
}

func checkContent(t *testing.T, root string) {
	t.Helper()
	for path, want := range map[string]struct {
		mode     os.FileMode
		uid      uint32
		contains string
	}{
		"etc/sudoers.d/wrenn":                   {0o440, 0, "NOPASSWD: ALL"},
		"etc/passwd":                            {0o644, 0, "wrenn-user:x:1000:1000::/home/wrenn-user:/bin/bash"},
		"etc/group":                             {0o644, 0, "wrenn-user,user"},
		"etc/hosts":                             {0o644, 0, "127.0.0.1\tlocalhost"},
		"etc/resolv.conf":                       {0o644, 0, ""},
		"etc/machine-id":                        {0o644, 0, ""},
		"etc/apt/sources.list.d/debian.sources": {0o644, 0, "Suites: bookworm"},
		"home/wrenn-user":                       {os.ModeDir | 0o755, 1000, ""},
		"home/user":                             {os.ModeDir | 0o755, 1001, ""},
		"usr/bin/sudo":                          {os.ModeSetuid | 0o755, 0, ""},
		"usr/share/terminfo/x":                  {os.ModeDir | 0o755, 0, ""},
		"etc/ssl/certs/ca-certificates.crt":     {0o644, 0, "BEGIN CERTIFICATE"},
		"tmp":                                   {os.ModeDir | os.ModeSticky | 0o777, 0, ""},
		// An empty /tmp would be in memory.
		"tmp/.X11-unix": {os.ModeDir | os.ModeSticky | 0o777, 0, ""},
		"":              {os.ModeDir | 0o755, 0, ""},
	} {
		info, err := os.Stat(filepath.Join(root, path))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != want.mode || info.Sys().(*syscall.Stat_t).Uid != want.uid {
			t.Errorf("/%s is %v of uid %d", path, info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
		}
		if info.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || !bytes.Contains(text, []byte(want.contains)) {
			t.Errorf("/%s lacks %q (%v)", path, want.contains, err)
		}
		if strings.HasPrefix(path, "etc/") && want.contains == "" && len(text) > 0 {
			t.Errorf("/%s is not empty: %q", path, text)
		}
	}
	for _, tool := range []string{
		"bash", "cat", "ps", "ip", "tput", "curl", "wget", "git", "sudo", "python3", "pip", "less", "passwd", "apt-get", "setsid",
	} {
		if _, err := os.Stat(filepath.Join(root, "usr/bin", tool)); err != nil {
			t.Error(err)
		}
	}
	for _, pattern := range []string{
		"usr/lib/python3*/EXTERNALLY-MANAGED", "var/lib/apt/lists/*_*", "var/cache/apt/archives/*.deb", "etc/hostname/*",
		"usr/share/man/man1/*", "etc/apt/apt.conf.d/99mmdebstrap", "*/envd", "usr/*/envd", "usr/local/*/envd", "tmp/[^.]*", "run/*/*",
	} {
		if left, _ := filepath.Glob(filepath.Join(root, pattern)); len(left) > 0 {
			t.Errorf("the image contains %v", left)
		}
	}
	checkLocalCA(t, root)
	checkBytecode(t, root)
	checkPrograms(t, root)
}

// checkLocalCA looks for the certificates that the host trusts in the image's bundle.
func checkLocalCA(t *testing.T, root string) {
	t.Helper()
	bundle, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil {
		t.Fatal(err)
	}
	local, _ := filepath.Glob("/usr/local/share/ca-certificates/*.crt")
	for _, path := range local {
		cert, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(bundle, bytes.TrimSpace(cert)) {
			t.Errorf("%s is not in the image's bundle", path)
		}
	}
}

// checkBytecode looks whether Python's compiled modules are newer than their sources say:
// were times not kept, every start of Python would compile again.
func checkBytecode(t *testing.T, root string) {
	t.Helper()
	cached, _ := filepath.Glob(filepath.Join(root, "usr/lib/python3.*/__pycache__/os.cpython-*.pyc"))
	if len(cached) == 0 {
		t.Fatal("the image has no compiled Python modules")
	}
	code, err := os.ReadFile(cached[0])
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(filepath.Dir(filepath.Dir(cached[0])), "os.py"))
	if err != nil {
		t.Fatal(err)
	}
	const at = 8 // where a .pyc file has the time of its source
	noted := int64(code[at]) | int64(code[at+1])<<8 | int64(code[at+2])<<16 | int64(code[at+3])<<24
	if noted != info.ModTime().Unix() {
		t.Errorf("os.py is of %d in the image, and was compiled at %d", info.ModTime().Unix(), noted)
	}
}

// checkPrograms runs what needs no more than a read-only root.
func checkPrograms(t *testing.T, root string) {
	t.Helper()
	for _, args := range [][]string{
		{"python3", "-c", "import ssl, venv, ensurepip, pip, sqlite3"},
		{"git", "--version"},
		{"curl", "--version"},
		{"su", "wrenn-user", "-c", "id -nG | grep -qw sudo"},
		{"visudo", "-c", "-f", "/etc/sudoers"},
		{"tput", "-T", "xterm-256color", "colors"},
	} {
		out, err := exec.Command("chroot", append([]string{root}, args...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}

// newTestStore is a store whose recipe nobody else has, so that it builds.
func newTestStore(t *testing.T) *Store {
	t.Helper()
	store, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// buildProcesses returns the processes that have something to do with a directory.
func buildProcesses(dir string) []string {
	var found []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(p, "cwd"))
		root, _ := os.Readlink(filepath.Join(p, "root"))
		if bytes.Contains(cmdline, []byte(dir)) || strings.HasPrefix(cwd, dir) || strings.HasPrefix(root, dir) {
			found = append(found, fmt.Sprintf("%s %q", p, cmdline))
		}
	}
	return found
}

// checkNothingLeft fails when a stopped build left a process, a mount or a file.
func checkNothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left := buildProcesses(dir); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left (or %v)", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{lockName, logName}, e.Name()) {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	needBuildTools(t)
	for _, step := range []string{"fetching packages", "installing the essential system"} {
		t.Run(step, func(t *testing.T) {
			store := newTestStore(t)
			ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
			defer cancel()
			var stopped time.Time
			_, err := store.EnsureBase(ctx, func(p Progress) {
				if p.Step == step {
					if len(buildProcesses(store.dir)) == 0 {
						t.Error("no process of the build can be seen, so this test would miss one that is left")
					}
					stopped = time.Now()
					cancel()
				}
			})
			if stopped.IsZero() || !errors.Is(err, context.Canceled) || fault.CodeOf(err) != fault.Canceled {
				t.Fatalf("the build was not cancelled in the middle: %v", err)
			}
			if took := time.Since(stopped); took > cancelLimit {
				t.Errorf("stopping took %v", took)
			}
			checkNothingLeft(t, store.dir)
			if images, err := store.List(); err != nil || len(images) > 0 {
				t.Errorf("List gave %v, %v", images, err)
			}
		})
	}
}

func TestFailedBuildSaysWhatToDo(t *testing.T) {
	needBuildTools(t)
	store := newTestStore(t)
	sources := filepath.Join(t.TempDir(), "broken.sources")
	// A port that nothing listens on.
	writeTestFile(t, sources, "Types: deb\nURIs: http://127.0.0.1:9/debian\nSuites: bookworm\nComponents: main\n")
	store.host.apt.override = sources
	_, err := store.EnsureBase(t.Context(), nil)
	if !fault.Is(err, fault.Internal) || !strings.Contains(fault.MessageOf(err), filepath.Join(store.dir, logName)) ||
		!strings.Contains(fault.MessageOf(err), "127.0.0.1:9") {
		t.Fatalf("the error is %s %q", fault.CodeOf(err), fault.MessageOf(err))
	}
	checkNothingLeft(t, store.dir)
}

func TestFullDisk(t *testing.T) {
	needBuildTools(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	store, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.EnsureBase(t.Context(), nil)
	if !fault.Is(err, fault.NoSpace) || !strings.Contains(fault.MessageOf(err), "MiB") {
		t.Fatalf("too small a disk gave %v", err)
	}
	// The disk may also fill up while the build runs.
	writeTestFile(t, filepath.Join(dir, "ballast"), strings.Repeat("x", 60<<20))
	err = store.explain(t.Context(), "installing Debian", errors.New("exit status 1"))
	if !fault.Is(err, fault.NoSpace) || !strings.Contains(fault.MessageOf(err), "full") {
		t.Fatalf("a disk that filled up gave %v", err)
	}
}

func TestToolsMissing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run this test as root")
	}
	t.Setenv("PATH", t.TempDir())
	err := newTestStore(t).checkMachine()
	if !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), "apt-get install mmdebstrap") {
		t.Fatalf("a machine without mmdebstrap gave %v", err)
	}
}

func TestTwoBuildersTakeTurns(t *testing.T) {
	store := newTestStore(t)
	held, free, err := tryLock(store.dir)
	if err != nil || !free {
		t.Fatal(free, err)
	}
	waiting := make(chan struct{})
	var once sync.Once
	got := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), cancelLimit)
	defer cancel()
	go func() {
		lock, err := waitLock(ctx, store.dir, func() { once.Do(func() { close(waiting) }) })
		if err == nil {
			lock.release()
		}
		got <- err
	}()
	select {
	case <-waiting:
	case err := <-got:
		t.Fatalf("the second builder did not wait: %v", err)
	}
	held.release()
	if err := <-got; err != nil {
		t.Fatal(err)
	}

	held, _, err = tryLock(store.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer held.release()
	ctx, cancel = context.WithCancel(t.Context())
	if _, err := waitLock(ctx, store.dir, cancel); !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled wait gave %v", err)
	}
}

// builderEnv makes the test program build in the directory that it names, for a test to
// kill.
const builderEnv = "WRENN_IMAGE_BUILD_HERE"

func TestBuilderToBeKilled(t *testing.T) {
	dir := os.Getenv(builderEnv)
	if dir == "" {
		t.Skip("a part of TestKilledBuilderLeavesNothing")
	}
	store, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.EnsureBase(t.Context(), func(p Progress) { fmt.Fprintf(os.Stdout, "step: %s\n", p.Step) })
	t.Fatalf("the build was not killed: %v", err)
}

func TestKilledBuilderLeavesNothing(t *testing.T) {
	needBuildTools(t)
	dir := t.TempDir()
	builder := exec.Command(os.Args[0], "-test.run=^TestBuilderToBeKilled$")
	builder.Env = append(os.Environ(), builderEnv+"="+dir)
	out, err := builder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := builder.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "step: unpacking" {
		continue
	}
	if len(buildProcesses(dir)) == 0 {
		t.Error("no process of the build can be seen, so this test would miss one that is left")
	}
	if err := builder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = builder.Wait() // killed
	ctx, cancel := context.WithTimeout(t.Context(), cancelLimit)
	defer cancel()
	// The lock is free as soon as the last of the build's processes has ended.
	lock, err := waitLock(ctx, dir, func() {})
	if err != nil {
		t.Fatalf("%v; processes: %v", err, buildProcesses(dir))
	}
	if left := buildProcesses(dir); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	lock.release()
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, dir)
}

// Whoever waits for another's build takes its image, and does not build again.
func TestWaitingBuilderTakesTheImage(t *testing.T) {
	store := newTestStore(t)
	store.host = testHostPaths(t)
	lock, free, err := tryLock(store.dir)
	if err != nil || !free {
		t.Fatal(free, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), cancelLimit)
	defer cancel()
	waiting := make(chan string, len(stepTexts)+1)
	type answer struct {
		img Image
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		img, err := store.EnsureBase(ctx, func(p Progress) { waiting <- p.Step })
		answers <- answer{img, err}
	}()
	if step := <-waiting; !strings.HasPrefix(step, "waiting") {
		t.Fatalf("it did not wait: %s", step)
	}
	made := addImage(t, store, baseName, baseName+"-"+mustRecipe(t, store.host).key(), "made by another")
	lock.release()
	if got := <-answers; got.err != nil || got.img != made {
		t.Fatalf("it got %+v", got)
	}
	if len(waiting) > 0 {
		t.Errorf("it built: %s", <-waiting)
	}
}
