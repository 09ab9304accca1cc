package httpapi

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// Ports is what servers in sandboxes listen on, as sandbox.Traffic has it.
type Ports interface {
	Find(ctx context.Context, id string) (sandbox.Sandbox, error)
	Ports(ctx context.Context, id string) ([]sandbox.Port, error)
}

// Web is where ports of sandboxes are on the web, as webproxy.Edge has it.
type Web interface {
	// URL is the address of a port, empty when it has none.
	URL(id string, port int) string
	Link(sb sandbox.Sandbox, port int) (link string, expires time.Time, err error)
	// WriteMetrics writes what passed, in the text format of Prometheus.
	WriteMetrics(w io.Writer) error
}

// portHandlers is the API of ports.
type portHandlers struct {
	ports Ports
	web   Web
}

// ListPorts implements api.StrictServerInterface.
func (h portHandlers) ListPorts(ctx context.Context, req api.ListPortsRequestObject) (api.ListPortsResponseObject, error) {
	ports, err := h.ports.Ports(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	out := api.ListPorts200JSONResponse{Ports: make([]api.Port, len(ports))}
	for i, p := range ports {
		processes := make([]api.PortProcess, len(p.Processes))
		for j, process := range p.Processes {
			processes[j] = api.PortProcess{Pid: int64(process.PID), Name: process.Name}
		}
		out.Ports[i] = api.Port{Port: p.Number, Addresses: p.Addresses, URL: h.web.URL(req.ID, p.Number), Processes: processes}
	}
	return out, nil
}

// CreatePortLink implements api.StrictServerInterface.
func (h portHandlers) CreatePortLink(ctx context.Context, req api.CreatePortLinkRequestObject) (api.CreatePortLinkResponseObject, error) {
	sb, err := h.ports.Find(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	link, expires, err := h.web.Link(sb, req.Port)
	if err != nil {
		return nil, err
	}
	return api.CreatePortLink201JSONResponse{URL: link, ExpiresAt: expires.UTC().Truncate(time.Second)}, nil
}

// metricsPath is the one path outside protectedPrefix that wants a key: what is there names
// sandboxes, and a name is all that a public one needs.
const metricsPath = "/metrics"

// metricsType is the text format of Prometheus.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

// Metrics implements api.StrictServerInterface.
func (h portHandlers) Metrics(context.Context, api.MetricsRequestObject) (api.MetricsResponseObject, error) {
	return metricsPage{h.web}, nil
}

// metricsPage is the answer to Metrics, written as it is made.
type metricsPage struct{ web Web }

// VisitMetricsResponse implements api.MetricsResponseObject.
func (p metricsPage) VisitMetricsResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", metricsType)
	return p.web.WriteMetrics(w)
}
