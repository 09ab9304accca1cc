package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/host/child"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/rpc"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/gvisor"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
)

// runRoot holds what ends with the machine's boot: one directory for each data
// directory in use. It is short because the paths of Unix sockets are limited.
const runRoot = "/run/wrenn"

const mib = 1 << 20

// hostFloor is the running host agent of this machine.
type hostFloor struct {
	// socket is where it serves the host RPC.
	socket    string
	sandboxes *sandbox.Service
	server    *http.Server
	served    chan error
	network   *network.Network
	runtime   *gvisor.Driver
	runDir    string
	lock      *os.File
	// stopReaping ends the reaping of orphans, which sandboxes leave.
	stopReaping context.CancelFunc
}

// startHost starts the host agent over a data directory, which it locks. progress is
// told what takes long.
func startHost(ctx context.Context, dataDir, imageDir string, log *slog.Logger, progress func(image.Progress)) (h *hostFloor, err error) {
	h = &hostFloor{served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close(context.WithoutCancel(ctx)))
		}
	}()
	if h.lock, err = lockDir(dataDir); err != nil {
		return h, err
	}
	var life context.Context
	life, h.stopReaping = context.WithCancel(context.WithoutCancel(ctx))
	if err := child.Reap(life); err != nil {
		return h, err
	}
	instance, err := instanceID(dataDir)
	if err != nil {
		return h, err
	}
	images, err := image.Open(imageDir)
	if err != nil {
		return h, fmt.Errorf("open images: %w", err)
	}
	if _, err := images.EnsureBase(ctx, progress); err != nil {
		return h, fmt.Errorf("prepare the base image: %w", err)
	}
	if h.network, err = network.Open(ctx, network.Config{Instance: instance, DataDir: dataDir, Log: log}); err != nil {
		return h, fmt.Errorf("set up the network: %w", err)
	}
	h.runDir = filepath.Join(runRoot, instance)
	runsc, err := beside("runsc")
	if err != nil {
		return h, err
	}
	h.runtime, err = gvisor.New(gvisor.Config{
		Binary: runsc, ProgramsDir: filepath.Join(dataDir, "runtimes"), RunDir: h.runDir,
		OverlayDir: filepath.Join(dataDir, "overlays"), CgroupParent: "wrenn-" + instance, Log: log,
	})
	if err != nil {
		return h, fmt.Errorf("set up the runtime: %w", err)
	}
	envdDir, err := installGuest(dataDir)
	if err != nil {
		return h, fmt.Errorf("install the guest daemon: %w", err)
	}
	most, err := maxResources(dataDir)
	if err != nil {
		return h, err
	}
	h.sandboxes, err = sandbox.Open(ctx, sandbox.Config{
		Dir: filepath.Join(dataDir, "sandboxes"), EnvdDir: envdDir,
		Images: images, Network: h.network, Runtime: h.runtime, Max: most, Log: log,
	})
	if err != nil {
		return h, err
	}
	err = h.serve(ctx, instance, log)
	return h, err
}

// serve listens on the Unix socket, which root alone can open.
func (h *hostFloor) serve(ctx context.Context, instance string, log *slog.Logger) error {
	handler, err := rpc.New(rpc.Config{HostID: "host-" + instance, Host: h.sandboxes, Sandboxes: h.sandboxes, Log: log})
	if err != nil {
		return err
	}
	h.socket = filepath.Join(h.runDir, "host.sock")
	if err := os.Remove(h.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", h.socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(h.socket, 0o600); err != nil {
		return errors.Join(err, listener.Close())
	}
	h.server = newHTTPServer(handler, log)
	// RPC comes as HTTP/2 without TLS, file contents as HTTP/1.1.
	h.server.Protocols = new(http.Protocols)
	h.server.Protocols.SetHTTP1(true)
	h.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { h.served <- h.server.Serve(listener) }()
	return nil
}

// close ends every sandbox and gives back what the host agent holds. It works on a
// host that started only in part.
func (h *hostFloor) close(ctx context.Context) error {
	var errs []error
	if h.sandboxes != nil {
		errs = append(errs, h.sandboxes.Close(ctx))
	}
	if h.server != nil {
		errs = append(errs, shutdown(ctx, h.server))
	}
	if h.network != nil {
		errs = append(errs, h.network.Close())
	}
	if h.runtime != nil {
		errs = append(errs, h.runtime.Close())
	}
	if h.runDir != "" {
		_ = os.Remove(h.runDir) // stays while something in it could not be removed
	}
	if h.stopReaping != nil {
		h.stopReaping()
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
	}
	return errors.Join(errs...)
}

// lockDir makes the data directory and takes its lock until the file is closed, or
// this process ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w; choose another with --data-dir", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("the data directory %s is in use by another wrenn; stop it or choose another with --data-dir", dir)
	}
	return f, nil
}

// instanceBytes is the length of what tells this data directory's namespaces, rules and
// cgroups from those of others on the machine.
const instanceBytes = 4

// instanceID returns the data directory's own id, made when it is first used.
func instanceID(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "instance")
	data, err := os.ReadFile(path)
	if err == nil {
		id := strings.TrimSpace(string(data))
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != instanceBytes {
			return "", fmt.Errorf("%s does not hold %d hexadecimal digits; restore it, or remove it when nothing of this data directory runs any more", path, 2*instanceBytes)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	raw := make([]byte, instanceBytes)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	id := hex.EncodeToString(raw)
	return id, atomicfile.WriteDurable(path, []byte(id+"\n"), 0o600)
}

// beside finds a program of ours: next to this one, or in PATH.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		candidate := filepath.Join(dir, name)
		if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() && filepath.IsAbs(candidate) {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("%s is neither in %s nor in PATH; `make build` builds it", name, filepath.Dir(self))
}

// installGuest copies envd to a directory of its own in the data directory, from where
// sandboxes mount it: a later build must not change the program under a running guest.
func installGuest(dataDir string) (string, error) {
	source, err := beside("envd")
	if err != nil {
		return "", err
	}
	program, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(program)
	parent := filepath.Join(dataDir, "guest")
	dir := filepath.Join(parent, hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// What is there is not written again: a start must work on a full disk, too.
	path := filepath.Join(dir, "envd")
	if there, err := os.ReadFile(path); err != nil || !bytes.Equal(there, program) {
		if err := atomicfile.WriteDurable(path, program, 0o755); err != nil {
			return "", err
		}
	}
	// No sandbox outlives its host agent, so nobody uses the programs of older builds.
	old, err := os.ReadDir(parent)
	if err != nil {
		return "", err
	}
	for _, e := range old {
		if e.Name() != filepath.Base(dir) {
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
}

// The machine keeps a tenth of its memory for itself, and at least half a GiB.
const (
	reservedPart   = 10
	reservedMemory = 512 * mib
)

// maxResources is the most that one sandbox may ask for: the whole machine but for the
// memory that it needs itself.
func maxResources(dataDir string) (sandbox.Resources, error) {
	var memory unix.Sysinfo_t
	if err := unix.Sysinfo(&memory); err != nil {
		return sandbox.Resources{}, fmt.Errorf("read the machine's memory: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dataDir, &disk); err != nil {
		return sandbox.Resources{}, fmt.Errorf("read the size of the disk under %s: %w", dataDir, err)
	}
	total := memory.Totalram * uint64(memory.Unit)
	return sandbox.Resources{
		VCPUs:    runtime.NumCPU(),
		MemoryMB: int((total - max(total/reservedPart, reservedMemory)) / mib),
		DiskMB:   int(disk.Blocks * uint64(disk.Bsize) / mib),
	}, nil
}
