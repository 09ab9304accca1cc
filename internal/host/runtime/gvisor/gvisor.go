// Package gvisor is the runtime driver over gVisor's runsc: a user-space kernel that
// runs on any Linux machine. Each sandbox is an OCI bundle whose root is a read-only
// EROFS image under an overlay that lives in the sentry and spills to a host file.
//
// The driver runs runsc as a program for everything that starts or ends a sandbox:
// those calls move the calling process between cgroups, which a server must not do.
// It knows nothing of guests, users or records.
package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/host/child"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// Config says where a Driver finds its program and keeps its files.
type Config struct {
	// Binary is the absolute path of the runsc that new sandboxes are started with.
	Binary string
	// ProgramsDir is where copies of runsc are kept for as long as a sandbox or a
	// checkpoint needs them, on a disk that lasts.
	ProgramsDir string
	// RunDir holds sockets and state that end with the machine's boot. Sockets have a
	// path limit of 107 bytes, so this must be short, such as /run/wrenn/1a2b3c4d.
	RunDir string
	// OverlayDir is where the guests' written data spills, on a disk with room.
	OverlayDir string
	// CgroupParent is the name of the cgroup, below the root, that holds one cgroup
	// for each sandbox. No other user of the machine may use it.
	CgroupParent string
	Log          *slog.Logger
}

// Driver starts sandboxes with runsc. It is safe for concurrent use and holds no state
// of its own that lasts: what runs is read from RunDir and from the kernel, so that it drives what a
// process before this one has started.
type Driver struct {
	cfg      Config
	cgroups  cgroups
	programs programs
	// current is the hash of the program that new sandboxes are started with.
	current string
	meters  meters
	memory  *memoryLimits
}

var _ runtime.Driver = (*Driver)(nil)

// New returns a Driver and makes its directories.
func New(cfg Config) (*Driver, error) {
	if _, err := exec.LookPath(cfg.Binary); err != nil {
		return nil, fmt.Errorf("find runsc: %w; `make build` builds it", err)
	}
	d := &Driver{cfg: cfg, programs: programs{cfg.ProgramsDir}}
	for _, dir := range []string{d.stateDir(), d.bundlesDir(), d.rootfsDir(), cfg.OverlayDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := makeLink(cfg.OverlayDir, d.overlayLink()); err != nil {
		return nil, err
	}
	var err error
	if d.current, err = d.programs.keep(cfg.Binary); err != nil {
		return nil, fmt.Errorf("keep a copy of runsc: %w", err)
	}
	if d.cgroups, err = findCgroups(cgroupRoot, cfg.CgroupParent); err != nil {
		return nil, err
	}
	d.memory = newMemoryLimits(d.cgroups, d.bundlesDir(), cfg.Log)
	d.memory.lowerAll()
	prepareMachine(cfg.Log)
	return d, nil
}

// Name returns "gvisor".
func (d *Driver) Name() string { return "gvisor" }

func (d *Driver) stateDir() string   { return filepath.Join(d.cfg.RunDir, "gvisor") }
func (d *Driver) bundlesDir() string { return filepath.Join(d.cfg.RunDir, "bundles") }

func (d *Driver) bundle(id string) string { return filepath.Join(d.bundlesDir(), id) }

// pidFile holds the process id of a sandbox's sentry.
func (d *Driver) pidFile(id string) string { return filepath.Join(d.bundle(id), "sentry.pid") }

// cleanupTimeout bounds what is done after a failure, when the caller's context may
// have ended already.
const cleanupTimeout = 30 * time.Second

// Start boots a sandbox, or restores one.
func (d *Driver) Start(ctx context.Context, spec runtime.Spec) (err error) {
	defer func() {
		if err == nil {
			return
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, d.Destroy(clean, spec.ID))
	}()
	start := d.boot
	if spec.Checkpoint != "" {
		start = d.restore
	}
	if err := start(ctx, spec); err != nil {
		return err
	}
	if err := d.cgroups.limitCPU(spec.ID, spec.Limits.VCPUs); err != nil {
		return fmt.Errorf("limit its processors: %w", err)
	}
	d.memory.lower(spec.ID)
	return nil
}

func (d *Driver) boot(ctx context.Context, spec runtime.Spec) error {
	if err := d.writeBundle(spec); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := d.runsc(ctx, spec.ID, nil, "create", "--bundle", d.bundle(spec.ID), "--pid-file", d.pidFile(spec.ID), spec.ID); err != nil {
		return err
	}
	return d.runsc(ctx, spec.ID, nil, "start", spec.ID)
}

// List returns the ids that have a bundle, a cgroup or a state file.
func (d *Driver) List(context.Context) ([]string, error) {
	seen := map[string]bool{}
	var ids []string
	add := func(id string) {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	bundles, err := os.ReadDir(d.bundlesDir())
	if err != nil {
		return nil, err
	}
	for _, e := range bundles {
		add(e.Name())
	}
	for _, id := range d.cgroups.children() {
		add(id)
	}
	states, err := filepath.Glob(filepath.Join(d.stateDir(), "*_sandbox:*"))
	if err != nil {
		return nil, err
	}
	for _, path := range states {
		id, _, _ := strings.Cut(filepath.Base(path), "_sandbox:")
		add(id)
	}
	return ids, nil
}

// globalFlags are runsc's flags that every call for this driver shares.
func (d *Driver) globalFlags() []string {
	return []string{
		"--root=" + d.stateDir(),
		"--network=sandbox",
		// The overlay's directory must be named here as well as in the bundle's
		// annotation, or runsc does not make its file.
		"--overlay2=root:dir=" + d.overlayLink(),
		// sudo and su are setuid programs.
		"--allow-suid",
		// The guest daemon limits the guest's processes with a cgroup inside. Under v1
		// most forks are never charged: the sentry charges one random hierarchy of seven.
		"--in-sandbox-cgroup=v2",
		// Without it a restored sandbox gives up its connections at the next checkpoint,
		// since runsc forgets in the restore that they may be kept.
		"--allow-connected-on-save",
		// The helper binaries that newer releases look for are not part of the module.
		"--sidecar-usage-policy=DEFAULT",
	}
}

// maxToolOutput bounds how much of runsc's output an error shows, in bytes.
const maxToolOutput = 2048

// runsc runs one runsc command for a sandbox, whose bundle holds the command's log. The
// command has files from descriptor 3 on. The sandbox's first process inherits the null
// device, never a file of ours that a guest could fill or a pipe whose end it could notice.
func (d *Driver) runsc(ctx context.Context, id string, files []*os.File, args ...string) error {
	log := filepath.Join(d.bundle(id), "runsc.log")
	flags := append(d.globalFlags(), "--log="+log, "--log-format=text")
	cmd := exec.CommandContext(ctx, d.program(id), append(flags, args...)...)
	cmd.ExtraFiles = files
	// A signal for our terminal or group is for us, not for a create in flight.
	cmd.SysProcAttr = detached()
	if err := child.Run(cmd); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("runsc %s: %w", args[0], ctx.Err())
		}
		text, _ := os.ReadFile(log)
		text = bytes.TrimSpace(text)
		if len(text) > maxToolOutput {
			text = text[len(text)-maxToolOutput:]
		}
		return fmt.Errorf("runsc %s: %w: %s", args[0], err, text)
	}
	return nil
}
