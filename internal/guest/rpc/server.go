// Package rpc is the edge of the guest daemon: the Connect services and HTTP paths that
// the host and the SDKs speak. It decodes, checks who may ask, calls the packages that do
// the work, and encodes.
//
// Protocol types stop here. The package must not know how processes are run, files are
// written or identities are kept.
package rpc

import (
	"context"
	"log/slog"
	"math"
	"net/http"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem/watch"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/internal/guest/lifecycle"
	"github.com/wrenn-sandbox/wrenn/internal/guest/mmds"
	"github.com/wrenn-sandbox/wrenn/internal/guest/ports"
	"github.com/wrenn-sandbox/wrenn/internal/guest/process"
)

// Version is the version of the guest protocol that the daemon speaks; SDKs choose by it
// what they may ask for.
const Version = "0.6.13"

// maxMessage bounds one message from a client, in bytes. Contents of files do not travel
// in messages.
const maxMessage = 64 << 20

// Config configures a Server.
type Config struct {
	Logger *slog.Logger
	// Users are the accounts of the system.
	Users *identity.Users
	// System is where the sandbox's identity is written down.
	System identity.System
	// Path is the PATH that processes get.
	Path string
	// Processes configures how processes are run; its Logger is set by New.
	Processes process.Config
	// Ports configures which ports are forwarded, once the daemon has been initialized;
	// its Logger is set by New.
	Ports ports.Config
	// Lifecycle configures what happens before a snapshot; its Ports and Logger are set by
	// New. Without KeepAlives connections are kept as they are.
	Lifecycle lifecycle.Config
	// Metadata, unless it is nil, is asked at each POST /init who the sandbox is.
	Metadata func(context.Context) (mmds.Metadata, error)
}

// Server is the guest daemon without its listener. It is safe for concurrent use.
type Server struct {
	logger    *slog.Logger
	path      string
	identity  *identity.Identity
	processes *process.Manager
	ports     *ports.PortSubsystem
	lifecycle *lifecycle.Lifecycle
	meter     *lifecycle.Meter
	settler   *lifecycle.Settler
	files     *filesystem.Files
	watchers  *watch.Watchers
	metadata  func(context.Context) (mmds.Metadata, error) // nil: there is none
}

// New returns a Server and the handler of everything that it serves.
func New(cfg Config) (*Server, http.Handler) {
	cfg.Processes.Logger, cfg.Ports.Logger, cfg.Lifecycle.Logger = cfg.Logger, cfg.Logger, cfg.Logger
	subsystem := ports.New(cfg.Ports)
	cfg.Lifecycle.Ports = subsystem
	if cfg.Lifecycle.KeepAlives == nil {
		cfg.Lifecycle.KeepAlives = func(bool) {}
	}
	s := &Server{
		logger:    cfg.Logger,
		path:      cfg.Path,
		identity:  identity.New(cfg.Users, cfg.System, cfg.Logger),
		processes: process.NewManager(cfg.Processes),
		ports:     subsystem,
		lifecycle: lifecycle.New(cfg.Lifecycle),
		meter:     lifecycle.NewMeter(),
		settler:   lifecycle.NewSettler(),
		files:     filesystem.New(cfg.Users),
		watchers:  watch.NewWatchers(watch.KeepFor),
		metadata:  cfg.Metadata,
	}
	options := []connect.HandlerOption{
		connect.WithInterceptors(fault.Interceptor(), failureLog{cfg.Logger}),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCodec(jsonCodec{}),
		// What clients compress is understood, but nothing is compressed for them: the way
		// is short, and the time would be the sandbox's.
		connect.WithCompressMinBytes(math.MaxInt),
	}
	handler := s.requireUser(takeLimit(explained(s.routes(options))), connect.NewErrorWriter(options...))
	handler = endStalled(s.settle(crossOrigin(s.requireToken(handler))), StallLimit)
	return s, handler
}

// Close ends every process that is still running, every watcher and the ports. The handler
// must not be in use any more.
func (s *Server) Close() {
	s.settler.Close()
	s.watchers.Close()
	s.processes.Close()
	s.lifecycle.Close()
}
