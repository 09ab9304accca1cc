// Command envd is the guest daemon: it runs inside every sandbox, as its first process, and
// gives the outside its commands and files. It only wires; see internal/guest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/internal/guest/lifecycle"
	"github.com/wrenn-sandbox/wrenn/internal/guest/mmds"
	"github.com/wrenn-sandbox/wrenn/internal/guest/ports"
	"github.com/wrenn-sandbox/wrenn/internal/guest/process"
	"github.com/wrenn-sandbox/wrenn/internal/guest/rpc"
)

const (
	// Slow or idle clients: how long one may take for its headers, and how long a
	// connection may be without a request. The latter is longer than the proxies in front
	// keep theirs, so that a connection is never closed under a request that they send.
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 620 * time.Second
	// shutdownWait is how long running requests may take to end when the daemon is to stop.
	shutdownWait = 500 * time.Millisecond
	// maxHeader bounds a request's headers, in bytes.
	maxHeader = 64 << 10

	// memoryLimit, in bytes, makes the collector run early when a burst has taken much, since
	// the daemon's memory is the user's. Without a burst it runs as it does by itself: more
	// often it would be felt in every hundredth keystroke.
	memoryLimit = 96 << 20

	// What the processes of a sandbox get when the daemon itself was given nothing.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// umask is the one that files made by commands expect, whatever started the daemon.
	umask = 0o022

	runDir      = "/run/wrenn"
	cgroupMount = runDir + "/cgroup"
	cgroupName  = "user"
)

func main() {
	if err := run(); err != nil {
		slog.Error("envd failed", "err", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", ":49983", "address to serve on")
	pidsMax := flag.Int("pids-max", 0, "how many processes and threads the sandbox's user may have at once; 0 means no limit")
	forward := flag.String("forward-interface", "",
		"network interface on whose addresses servers that listen on loopback alone become reachable; empty forwards nothing")
	metadata := flag.String("metadata", "",
		"URL of the machine's metadata service, such as "+mmds.Address+" in a microVM; empty asks nobody")
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *version {
		fmt.Println(rpc.Version)
		return nil
	}
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see --help", flag.Arg(0))
	}
	debug.SetMemoryLimit(memoryLimit)
	syscall.Umask(umask)
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	slog.SetDefault(logger)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A log that nobody reads any more must not end the daemon. The signal is caught and
	// not ignored, because children would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", *listen, err)
	}
	front := newFront(logger)
	cfg := config(logger, *pidsMax)
	cfg.Ports = ports.Config{Interface: *forward, Own: listener.Addr().(*net.TCPAddr).AddrPort().Port()}
	cfg.Lifecycle.KeepAlives = front.SetKeepAlivesEnabled
	conns := lifecycle.NewConnections(rpc.StallLimit)
	cfg.Lifecycle.Revive = conns.Revive
	if *metadata != "" {
		cfg.Metadata = mmds.New(*metadata).Read
	}
	server, handler := rpc.New(cfg)
	defer server.Close()
	front.Handler = handler
	logger.Info("listening", "address", listener.Addr().String(), "version", rpc.Version)
	return serve(ctx, conns.Listen(listener), front, logger)
}

func config(logger *slog.Logger, pidsMax int) rpc.Config {
	first := os.Getpid() == 1
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	cfg := rpc.Config{
		Logger: logger,
		Users:  identity.NewUsers("/etc/passwd", "/etc/group"),
		Path:   path,
		Processes: process.Config{
			ReapOrphans:  first,
			MaxProcesses: pidsMax,
			CgroupMount:  cgroupMount,
			CgroupName:   cgroupName,
		},
	}
	if first {
		if err := lifecycle.CalmTCP(); err != nil {
			logger.Warn("turn off tail loss probes", "err", err)
		}
		// Only a sandbox is told who it is; a machine that runs envd for a test is not.
		cfg.System = identity.System{
			RunDir: runDir, HostsPath: "/etc/hosts", ResolvConfPath: "/etc/resolv.conf", SetHostname: true,
			MachineIDPath: "/etc/machine-id", SSHDir: "/etc/ssh", SSHPidPath: "/run/sshd.pid",
			SetClock: identity.SetClock,
			Trust: identity.TrustStore{
				// Debian's and Alpine's, Fedora's, openSUSE's.
				Bundles: []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"},
				Hashed:  "/etc/ssl/certs", Local: "/usr/local/share/ca-certificates",
			},
		}
		cfg.Lifecycle.Sync = unix.Sync // all of the disks are the sandbox's
	}
	return cfg
}

// newFront returns the HTTP server, which still wants its Handler.
func newFront(logger *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		Protocols:         protocols,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// serve answers requests until ctx ends.
func serve(ctx context.Context, listener net.Listener, server *http.Server, logger *slog.Logger) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	logger.Info("stopping")
	wait, cancel := context.WithTimeout(context.Background(), shutdownWait)
	defer cancel()
	if err := server.Shutdown(wait); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		logger.Warn("shut down", "err", err)
	}
	return server.Close()
}
