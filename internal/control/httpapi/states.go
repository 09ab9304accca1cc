package httpapi

import (
	"context"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
)

// stateHandlers is the API of what sandboxes are in and use: pause and resume, clocks,
// metrics.
type stateHandlers struct{ states States }

// PingSandbox implements api.StrictServerInterface.
func (h stateHandlers) PingSandbox(ctx context.Context, req api.PingSandboxRequestObject) (api.PingSandboxResponseObject, error) {
	if err := h.states.Ping(ctx, req.ID); err != nil {
		return nil, err
	}
	return api.PingSandbox204Response{}, nil
}

// PauseSandbox implements api.StrictServerInterface.
func (h stateHandlers) PauseSandbox(ctx context.Context, req api.PauseSandboxRequestObject) (api.PauseSandboxResponseObject, error) {
	sb, err := h.states.Pause(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return api.PauseSandbox200JSONResponse(encodeSandbox(sb)), nil
}

// ResumeSandbox implements api.StrictServerInterface.
func (h stateHandlers) ResumeSandbox(ctx context.Context, req api.ResumeSandboxRequestObject) (api.ResumeSandboxResponseObject, error) {
	var body api.ResumeRequest
	if req.Body != nil {
		body = *req.Body
	}
	sb, err := h.states.Resume(ctx, req.ID, seconds(body.WaitSec))
	if err != nil {
		return nil, err
	}
	return api.ResumeSandbox200JSONResponse(encodeSandbox(sb)), nil
}

// SetTimeout implements api.StrictServerInterface.
func (h stateHandlers) SetTimeout(ctx context.Context, req api.SetTimeoutRequestObject) (api.SetTimeoutResponseObject, error) {
	sb, err := h.states.SetTimeouts(ctx, req.ID, sandbox.Timeouts{
		Timeout: givenSeconds(req.Body.TimeoutSec), Deadline: givenSeconds(req.Body.DeadlineSec),
		OnTimeout: sandbox.OnTimeout(req.Body.OnTimeout),
	})
	if err != nil {
		return nil, err
	}
	return api.SetTimeout200JSONResponse(encodeSandbox(sb)), nil
}

// givenSeconds is seconds for a field that may be left out.
func givenSeconds(n *int64) *time.Duration {
	if n == nil {
		return nil
	}
	d := seconds(*n)
	return &d
}

// metricsRanges is what the names of api.MetricsRange mean.
var metricsRanges = map[api.MetricsRange]time.Duration{
	"5m": 5 * time.Minute, "10m": 10 * time.Minute,
	"1h": time.Hour, "2h": 2 * time.Hour, "6h": 6 * time.Hour, "12h": 12 * time.Hour, "24h": 24 * time.Hour,
}

// defaultMetricsRange is that of the API's description.
const defaultMetricsRange = "10m"

// GetMetrics implements api.StrictServerInterface.
func (h stateHandlers) GetMetrics(ctx context.Context, req api.GetMetricsRequestObject) (api.GetMetricsResponseObject, error) {
	before, ok := metricsRanges[req.Params.Range]
	if !ok {
		before = metricsRanges[defaultMetricsRange] // the validator knows no other
	}
	points, err := h.states.Metrics(ctx, req.ID, before)
	if err != nil {
		return nil, err
	}
	out := api.GetMetrics200JSONResponse{Points: make([]api.MetricsPoint, len(points))}
	for i, p := range points {
		out.Points[i] = api.MetricsPoint{
			Time: p.Time, TimestampUnix: p.Time.Unix(),
			CPUPct: p.CPUPct, CPULimitPct: p.Limits.CPUPct, MemBytes: p.MemoryBytes, MemLimitBytes: p.Limits.MemoryBytes,
			DiskBytes: p.DiskBytes, DiskLimitBytes: p.Limits.DiskBytes, Pids: p.Processes, PidsLimit: p.Limits.Processes,
			NetSentBytes: p.SentBytes, NetReceivedBytes: p.ReceivedBytes,
			NetSentBps: int64(p.SentRate), NetReceivedBps: int64(p.ReceivedRate), NetLimitBps: p.Limits.NetworkBitsPerSecond,
		}
	}
	return out, nil
}
