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
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/host/child"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
	"github.com/wrenn-sandbox/wrenn/internal/host/rpc"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime/gvisor"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
	"github.com/wrenn-sandbox/wrenn/internal/host/webproxy"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// runRoot holds what ends with the machine's boot: one directory for each data
// directory in use. It is short because the paths of Unix sockets are limited.
const runRoot = "/run/wrenn"

// hostFloor is the running host agent of this machine.
type hostFloor struct {
	// socket is where it serves the host RPC.
	socket    string
	sandboxes *sandbox.Service
	proxy     *webproxy.Proxy
	server    *http.Server
	served    chan error
	network   *network.Network
	runtime   *gvisor.Driver
	runDir    string
	lock      *os.File
	onStop    sandbox.OnStop
	// endLife ends what runs beside: the reaping of orphans, which sandboxes leave, and the
	// proxy's following of sandboxes.
	endLife context.CancelFunc
}

// startHost starts the host agent over a data directory, which it locks. progress is
// told what takes long.
func startHost(ctx context.Context, o hostOptions, log *slog.Logger, progress func(image.Progress)) (h *hostFloor, err error) {
	dataDir := o.dataDir
	h = &hostFloor{served: make(chan error, 1), onStop: sandbox.StopKeep}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close(context.WithoutCancel(ctx)))
		}
	}()
	if h.lock, err = lockDir(ctx, dataDir); err != nil {
		return h, err
	}
	var life context.Context
	life, h.endLife = context.WithCancel(context.WithoutCancel(ctx))
	if err := child.Reap(life); err != nil {
		return h, err
	}
	instance, err := instanceID(dataDir)
	if err != nil {
		return h, err
	}
	images, err := image.Open(o.imageDir)
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
	if err := h.openSandboxes(ctx, o, images, log); err != nil {
		return h, err
	}
	h.proxy = webproxy.New(webproxy.Config{Sandboxes: h.sandboxes, Look: h.lookAtPorts, Log: log})
	go h.proxy.Run(life)
	if err := h.serve(ctx, instance, log); err != nil {
		return h, err
	}
	h.onStop = o.onStop
	return h, nil
}

// openSandboxes takes over the sandboxes of the data directory, and removes what only those
// needed that are gone.
func (h *hostFloor) openSandboxes(ctx context.Context, o hostOptions, images *image.Store, log *slog.Logger) error {
	envdDir, err := installGuest(o.dataDir)
	if err != nil {
		return fmt.Errorf("install the guest daemon: %w", err)
	}
	snapshots, err := snapshot.Open(filepath.Join(o.dataDir, "snapshots"), log)
	if err != nil {
		return err
	}
	most, admit, err := o.capacity()
	if err != nil {
		return err
	}
	if err := protectAgent(); err != nil {
		log.Warn("the kernel may end Wrenn when memory runs out, before it ends sandboxes", "error", err)
	}
	h.sandboxes, err = sandbox.Open(ctx, sandbox.Config{
		Dir: filepath.Join(o.dataDir, "sandboxes"), MeterDir: filepath.Join(o.dataDir, "metrics"), EnvdDir: envdDir,
		Images: images, Network: h.network, Runtime: h.runtime, Snapshots: snapshots,
		Max: most, Admit: admit, NetworkRate: int64(o.networkRate) * megabit, Log: log,
	})
	if err != nil {
		return err
	}
	if err := removeGuests(o.dataDir, append(h.sandboxes.GuestDirs(), envdDir)); err != nil {
		log.Warn("remove guest daemons that nothing needs", "error", err)
	}
	if err := h.removePrograms(snapshots); err != nil {
		log.Warn("remove runtimes that nothing needs", "error", err)
	}
	return nil
}

// removePrograms removes the copies of the runtime that neither a sandbox nor a snapshot
// needs.
func (h *hostFloor) removePrograms(snapshots *snapshot.Store) error {
	var dirs []string
	var releases []func()
	defer func() {
		for _, release := range releases {
			release()
		}
	}()
	for _, snap := range snapshots.List() {
		dir, release, err := snapshots.Use(snap.ID)
		if err != nil {
			return err // a damaged one: nobody knows what it needs
		}
		releases = append(releases, release)
		dirs = append(dirs, dir)
	}
	return h.runtime.RemovePrograms(dirs)
}

// serve listens on the Unix socket, which root alone can open.
func (h *hostFloor) serve(ctx context.Context, instance string, log *slog.Logger) error {
	handler, err := rpc.New(rpc.Config{HostID: "host-" + instance, Host: h.sandboxes, Sandboxes: h.sandboxes, Snapshots: h.sandboxes.Snapshots(), Log: log})
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
	h.server = newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Not by a ServeMux: it would clean the paths, which are the application's.
		if webroute.IsProxied(r.URL.Path) {
			h.proxy.ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}), log)
	// RPC comes as HTTP/2 without TLS, file contents and proxied requests as HTTP/1.1.
	h.server.Protocols = new(http.Protocols)
	h.server.Protocols.SetHTTP1(true)
	h.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { h.served <- h.server.Serve(listener) }()
	return nil
}

// close does with the sandboxes as was asked for the stop, and gives back what the host
// agent itself holds. It works on a host that started only in part.
func (h *hostFloor) close(ctx context.Context) error {
	var errs []error
	if h.sandboxes != nil {
		errs = append(errs, h.sandboxes.Close(ctx, h.onStop))
	}
	if h.proxy != nil {
		h.proxy.Close() // a server does not know of upgraded connections
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
	if h.endLife != nil {
		h.endLife()
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
	}
	return errors.Join(errs...)
}

// lockDir makes the data directory and takes its lock until the file is closed, or
// this process ends.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w; choose another with --data-dir", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	err = whileBusy(ctx, lockTime, unix.EWOULDBLOCK, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
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
	return dir, nil
}

// removeGuests removes the guest daemons of earlier builds but those that are to be kept: a
// sandbox that runs, or comes back, needs the very file that it was started with. Their names
// count: the data directory may have been moved since their paths were noted.
func removeGuests(dataDir string, keep []string) error {
	parent := filepath.Join(dataDir, "guest")
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.ContainsFunc(keep, func(path string) bool { return filepath.Base(path) == e.Name() }) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// lookTime bounds how long a request for a port waits until the guest has looked for it.
const lookTime = 500 * time.Millisecond

// lookAtPorts has a guest look for ports: those that it lists can be reached.
func (h *hostFloor) lookAtPorts(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	if guest, err := h.sandboxes.Guest(id); err == nil {
		_, _ = guest.Ports(ctx) // the port is tried in any case
	}
}
