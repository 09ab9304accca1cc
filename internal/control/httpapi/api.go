// Package httpapi is the public API over HTTP: it decodes and validates what came
// against api/openapi.yaml, authorises, calls a service and encodes the answer. It must
// not know the database or the host, and decides nothing that a service could.
package httpapi

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/account"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Sandboxes is the life of sandboxes, as sandbox.Service has it.
type Sandboxes interface {
	Create(ctx context.Context, o sandbox.Options) (sandbox.Sandbox, error)
	List(ctx context.Context, q sandbox.Query) (sandbox.Page, error)
	Get(ctx context.Context, id string) (sandbox.Sandbox, error)
	Delete(ctx context.Context, id string) error
}

// States is what sandboxes are in and use, as sandbox.Service has it.
type States interface {
	Ping(ctx context.Context, id string) error
	Pause(ctx context.Context, id string) (sandbox.Sandbox, error)
	Resume(ctx context.Context, id string, wait time.Duration) (sandbox.Sandbox, error)
	SetTimeouts(ctx context.Context, id string, t sandbox.Timeouts) (sandbox.Sandbox, error)
	Metrics(ctx context.Context, id string, before time.Duration) ([]sandbox.Point, error)
}

// Snapshots is the snapshots and copies of sandboxes, as sandbox.Snapshots has them.
type Snapshots interface {
	Fork(ctx context.Context, id string, count int, timeout *time.Duration) ([]sandbox.Sandbox, error)
	Create(ctx context.Context, o sandbox.SnapshotOptions) (sandbox.Snapshot, error)
	List(ctx context.Context) ([]sandbox.Snapshot, error)
	Find(ctx context.Context, nameOrID string) (sandbox.Snapshot, error)
	Delete(ctx context.Context, nameOrID string) error
	// Own returns the templates that the server brings itself.
	Own(ctx context.Context) ([]sandbox.OwnTemplate, error)
}

// Processes is the commands and terminals in sandboxes, as sandbox.Processes has them.
type Processes interface {
	Exec(ctx context.Context, id string, cmd sandbox.Command, stdin []byte) (sandbox.Result, error)
	Background(ctx context.Context, id string, cmd sandbox.Command) (sandbox.Started, error)
	List(ctx context.Context, id string) ([]sandbox.Process, error)
	Signal(ctx context.Context, id string, sel sandbox.Selector, sig sandbox.Signal) error
	CheckRunning(ctx context.Context, id string) error
	Open(ctx context.Context, id string, cmd sandbox.Command) (sandbox.Session, error)
	Connect(ctx context.Context, id string, f sandbox.Follow) (sandbox.Session, error)
}

// Files is the files of sandboxes, as sandbox.Files has them.
type Files interface {
	Stat(ctx context.Context, id, user, path string) (sandbox.FileEntry, error)
	List(ctx context.Context, id, user, path string, depth int) ([]sandbox.FileEntry, error)
	MakeDir(ctx context.Context, id, user, path string) (sandbox.FileEntry, error)
	Move(ctx context.Context, id, user, from, to string) (sandbox.FileEntry, error)
	Remove(ctx context.Context, id, user, path string) error
	Read(ctx context.Context, id, user, path string) (sandbox.Contents, error)
	Write(ctx context.Context, id, user, path string, r io.Reader, size int64) error
}

// Accounts tells who calls, as account.Service does.
type Accounts interface {
	Verify(ctx context.Context, secret string) (account.Key, error)
}

// Config is what the API serves.
type Config struct {
	Sandboxes Sandboxes
	States    States
	Snapshots Snapshots
	Processes Processes
	Files     Files
	Ports     Ports
	Web       Web
	Accounts  Accounts
	// Ready says why the server cannot do its work, or nil when it can.
	Ready func(ctx context.Context) error
	Log   *slog.Logger
}

// handlers is the generated server interface, one part a noun.
type handlers struct {
	sandboxHandlers
	stateHandlers
	snapshotHandlers
	processHandlers
	fileHandlers
	portHandlers
	operationHandlers
}

// API is the handler of the whole API.
type API struct {
	http.Handler
	streams *streams
}

// Close tells the clients of WebSockets that the server stops, and waits until they know
// or ctx ends. It comes before the server's own Shutdown, which knows nothing of them.
func (a *API) Close(ctx context.Context) error { return a.streams.close(ctx) }

// New returns the whole API. It is meant for a server with ReadHeaderTimeout and without
// ReadTimeout and WriteTimeout: transfers and commands take as long as they take.
func New(cfg Config) (*API, error) {
	v, err := newValidator(api.YAML)
	if err != nil {
		return nil, fmt.Errorf("read the API's description: %w", err)
	}
	fail := failer{cfg.Log}
	mux := http.NewServeMux()
	strict := api.NewStrictHandlerWithOptions(handlers{
		sandboxHandlers{cfg.Sandboxes},
		stateHandlers{cfg.States},
		snapshotHandlers{cfg.Snapshots},
		processHandlers{cfg.Processes},
		fileHandlers{cfg.Files},
		portHandlers{cfg.Ports, cfg.Web},
		operationHandlers{cfg.Ready},
	}, nil, api.StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  fail.decoding,
		ResponseErrorHandlerFunc: fail.write,
	})
	api.HandlerWithOptions(strict, api.StdHTTPServerOptions{
		BaseRouter:       mux,
		Middlewares:      []api.MiddlewareFunc{v.middleware(fail)},
		ErrorHandlerFunc: fail.parameter,
	})
	streams := newStreams(cfg.Processes, cfg.Log)
	mux.Handle("GET /v1/sandboxes/{id}/exec/stream", fail.handler(streams.exec))
	mux.Handle("GET /v1/sandboxes/{id}/pty", fail.handler(streams.terminal))
	mux.Handle("GET /v1/sandboxes/{id}/processes/{process}/stream", fail.handler(streams.process))
	addDocuments(mux)

	var h http.Handler = router{mux: mux, fail: fail, auth: authenticator{cfg.Accounts}}
	h = alias(h)
	h = recovered(h, fail)
	return &API{withRequestID(h), streams}, nil
}

// operationHandlers is the API for those who run the server.
type operationHandlers struct {
	ready func(ctx context.Context) error
}

// Healthz implements api.StrictServerInterface.
func (operationHandlers) Healthz(context.Context, api.HealthzRequestObject) (api.HealthzResponseObject, error) {
	return api.Healthz200JSONResponse{Status: api.Ok}, nil
}

// Readyz implements api.StrictServerInterface.
func (h operationHandlers) Readyz(ctx context.Context, _ api.ReadyzRequestObject) (api.ReadyzResponseObject, error) {
	if err := h.ready(ctx); err != nil {
		return nil, fault.Wrap(err, fault.HostUnavailable, "not ready: %s", fault.MessageOf(err))
	}
	return api.Readyz200JSONResponse{Status: api.Ok}, nil
}
