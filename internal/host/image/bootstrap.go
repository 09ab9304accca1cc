package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/host/child"
)

// stepText is a step of a build as people read it, and how mmdebstrap begins to tell of
// it; the steps that mmdebstrap knows nothing of have no said.
type stepText struct{ said, text string }

var stepTexts = []stepText{
	{"I: running apt-get update", "fetching package lists"},
	{"I: downloading packages", "fetching packages"},
	{"I: extracting archives", "unpacking"},
	{"I: installing essential packages", "installing the essential system"},
	{"I: installing remaining packages", "installing packages"},
	{"I: running --customize-hook", "setting up users and certificates"},
	{"I: cleaning package lists", "tidying up"},
	{"", stepMakeImage},
}

const (
	stepMakeImage = "making the image"

	// drainTime is how long the output of a killed command may take to end.
	drainTime = 10 * time.Second

	// lockFD is where commands of a build hold the build lock: above the descriptors
	// that maintainer scripts use for themselves (debconf takes 3).
	lockFD = 19
	// firstExtraFD is the descriptor of exec.Cmd's first extra file.
	firstExtraFD = 3
)

func (b *builder) imageFile() string { return filepath.Join(b.work, "image"+imageExt) }

// The files of a build, in its directory.
func (b *builder) path(name string) string { return filepath.Join(b.work, name) }

// prepare writes what mmdebstrap and its hook read.
func (b *builder) prepare(context.Context) error {
	if err := os.Mkdir(b.path("tmp"), dirMode); err != nil {
		return err
	}
	for name, f := range b.recipe.Overlay {
		target := filepath.Join(b.path("overlay"), name)
		if err := os.MkdirAll(filepath.Dir(target), dirMode); err != nil {
			return err
		}
		if err := writeFile(target, f.Data, f.Mode); err != nil {
			return err
		}
	}
	const private = 0o600 // the sources and the proxy may have passwords
	for name, data := range map[string][]byte{
		"build.sources": renderSources(b.recipe.Sources),
		"apt.conf":      b.recipe.aptOptions,
		"dpkg.cfg":      b.recipe.Overlay[dpkgConfPath].Data,
		"customize.sh":  b.recipe.Script,
	} {
		if err := writeFile(b.path(name), data, private); err != nil {
			return err
		}
	}
	return nil
}

// writeFile is os.WriteFile whatever the umask.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, data, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// bootstrap installs Debian into a directory and makes it the base.
func (b *builder) bootstrap(ctx context.Context) error {
	return b.run(ctx, "mmdebstrap",
		"--mode=root", "--variant=minbase", "--format=directory",
		"--architectures="+b.recipe.Arch,
		"--include="+strings.Join(b.recipe.Packages, ","),
		"--aptopt="+b.path("apt.conf"),
		"--aptopt=Acquire::Languages none",
		"--dpkgopt="+b.path("dpkg.cfg"),
		`--customize-hook=sh "$WRENN_BUILD/customize.sh" "$1"`,
		b.recipe.Suite, b.path("root"), b.path("build.sources"))
}

// makeImage packs the directory into an EROFS file of the kind that gVisor maps into its
// guests: uncompressed, and every file's data in blocks of its own.
//
// gVisor mounts a tmpfs over an empty /tmp: what is written there would be memory, and a
// large file would end the sandbox. With a directory in it, one that a running Debian has
// too, /tmp stays on the disk. mmdebstrap empties it at its end, so it is made here.
func (b *builder) makeImage(ctx context.Context) error {
	b.report(stepMakeImage)
	sockets := filepath.Join(b.path("root"), "tmp", ".X11-unix")
	if err := os.Mkdir(sockets, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(sockets, 0o777|os.ModeSticky); err != nil {
		return err
	}
	return b.run(ctx, "mkfs.erofs", "--quiet", "-Enoinline_data", "--preserve-mtime", b.imageFile(), b.path("root"))
}

// run runs a command of the build, with its output in the log.
//
// The command is the first process of a process namespace and has a mount namespace of
// its own, and dies with this process: whichever way it ends, all its children have ended
// and no mount of theirs is left.
func (b *builder) run(ctx context.Context, name string, args ...string) error {
	// The parent whose death the kernel tells the child of is a thread, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.work
	cmd.Env = append(os.Environ(),
		"LC_ALL=C.UTF-8",
		"TMPDIR="+b.path("tmp"),
		"WRENN_BUILD="+b.work,
		"WRENN_OVERLAY="+b.path("overlay"))
	output := &stepWriter{log: b.log, report: b.report}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = drainTime
	cmd.ExtraFiles = make([]*os.File, lockFD-firstExtraFD+1)
	cmd.ExtraFiles[lockFD-firstExtraFD] = b.lock.file
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS,
		Setsid:       true, // Ctrl-C is for us; we end the command
		Pdeathsig:    syscall.SIGKILL,
	}
	if err := child.Run(cmd); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// stepWriter copies output to the log and reports the steps that it tells of. It is used
// by one goroutine, that of the command whose output it is.
type stepWriter struct {
	log    *os.File
	report func(string)
	line   []byte
}

func (w *stepWriter) Write(p []byte) (int, error) {
	const longest = 4 << 10 // a line that tells of a step is shorter
	for _, chunk := range bytes.SplitAfter(p, []byte("\n")) {
		if len(w.line) < longest {
			w.line = append(w.line, chunk...)
		}
		if bytes.HasSuffix(chunk, []byte("\n")) {
			w.tell(string(w.line))
			w.line = w.line[:0]
		}
	}
	return w.log.Write(p)
}

func (w *stepWriter) tell(line string) {
	for _, s := range stepTexts {
		if s.said != "" && strings.HasPrefix(line, s.said) {
			w.report(s.text)
		}
	}
}
