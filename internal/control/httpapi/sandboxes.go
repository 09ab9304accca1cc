package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// sandboxHandlers is the API of sandboxes.
type sandboxHandlers struct{ sandboxes Sandboxes }

// CreateSandbox implements api.StrictServerInterface.
func (h sandboxHandlers) CreateSandbox(ctx context.Context, req api.CreateSandboxRequestObject) (api.CreateSandboxResponseObject, error) {
	var body api.CreateSandboxRequest
	if req.Body != nil {
		body = *req.Body
	}
	sb, err := h.sandboxes.Create(ctx, sandbox.Options{
		Template:  body.Template,
		Resources: sandbox.Resources{VCPUs: body.Vcpus, MemoryMB: body.MemoryMb, DiskMB: body.DiskSizeMb},
		Timeout:   seconds(body.TimeoutSec),
		Deadline:  seconds(body.DeadlineSec),
		OnTimeout: sandbox.OnTimeout(body.OnTimeout),
		Env:       body.Env,
		User:      body.User,
		Metadata:  body.Metadata,
		Web: sandbox.WebOptions{
			Private:    body.AllowPublicTraffic != nil && !*body.AllowPublicTraffic,
			AutoResume: body.AutoResume, MaskHost: body.MaskRequestHost,
		},
		Wait: seconds(body.WaitSec),
	})
	if err != nil {
		return nil, err
	}
	return api.CreateSandbox201JSONResponse(encodeSandbox(sb)), nil
}

// labelPrefix is how a parameter that filters by metadata begins. The rest of its name
// is a key, so that the description cannot name it.
const labelPrefix = "metadata."

// ListSandboxes implements api.StrictServerInterface.
func (h sandboxHandlers) ListSandboxes(ctx context.Context, req api.ListSandboxesRequestObject) (api.ListSandboxesResponseObject, error) {
	labels, err := labelFilters(ctx)
	if err != nil {
		return nil, err
	}
	page, err := h.sandboxes.List(ctx, sandbox.Query{
		Status:   sandbox.Status(req.Params.Status),
		Template: req.Params.Template,
		Metadata: labels,
		Limit:    req.Params.Limit,
		Cursor:   req.Params.Cursor,
	})
	if err != nil {
		return nil, err
	}
	return sandboxPage(page), nil
}

// labelFilters reads the parameters metadata.<key>.
func labelFilters(ctx context.Context) (map[string]string, error) {
	var labels map[string]string
	for name, values := range query(ctx) {
		key, ok := strings.CutPrefix(name, labelPrefix)
		if !ok {
			continue
		}
		if len(values) > 1 {
			return nil, fault.New(fault.InvalidRequest, "parameter %q is given more than once", name)
		}
		if labels == nil {
			labels = make(map[string]string)
		}
		labels[key] = values[0]
	}
	return labels, nil
}

// sandboxPage is an answer to ListSandboxes that has the cursor only when there is one.
type sandboxPage sandbox.Page

// VisitListSandboxesResponse implements api.ListSandboxesResponseObject.
func (p sandboxPage) VisitListSandboxesResponse(w http.ResponseWriter) error {
	list := make([]api.Sandbox, len(p.Sandboxes))
	for i, sb := range p.Sandboxes {
		list[i] = encodeSandbox(sb)
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if p.Next != "" {
		w.Header().Set("X-Next-Cursor", p.Next)
	}
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(http.StatusOK)
	_, err = w.Write(raw)
	return err
}

// GetSandbox implements api.StrictServerInterface.
func (h sandboxHandlers) GetSandbox(ctx context.Context, req api.GetSandboxRequestObject) (api.GetSandboxResponseObject, error) {
	sb, err := h.sandboxes.Get(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return api.GetSandbox200JSONResponse(encodeSandbox(sb)), nil
}

// DeleteSandbox implements api.StrictServerInterface.
func (h sandboxHandlers) DeleteSandbox(ctx context.Context, req api.DeleteSandboxRequestObject) (api.DeleteSandboxResponseObject, error) {
	if err := h.sandboxes.Delete(ctx, req.ID); err != nil {
		return nil, err
	}
	return api.DeleteSandbox204Response{}, nil
}

func encodeSandbox(sb sandbox.Sandbox) api.Sandbox {
	out := api.Sandbox{
		ID: sb.ID, Status: api.SandboxStatus(sb.Status), Reason: sb.Reason, Template: sb.Template,
		Vcpus: sb.Resources.VCPUs, MemoryMb: sb.Resources.MemoryMB, DiskSizeMb: sb.Resources.DiskMB,
		TimeoutSec: int64(sb.Timeout / time.Second), DeadlineSec: int64(sb.Deadline / time.Second),
		OnTimeout: api.OnTimeout(sb.OnTimeout),
		Runtime:   sb.Runtime, HostID: sb.HostID, HostIP: sb.HostIP, GuestIP: sb.GuestIP,
		Metadata:           sb.Metadata,
		AllowPublicTraffic: !sb.Web.Private(), TrafficToken: sb.Web.TrafficToken,
		AutoResume: sb.Web.AutoResume, MaskRequestHost: sb.Web.MaskHost,
		CreatedAt: sb.CreatedAt, StartedAt: sb.StartedAt, LastActiveAt: sb.LastActiveAt,
		LastUpdated: sb.UpdatedAt, EndsAt: sb.EndsAt(),
		PausedAt: sb.PausedAt, SnapshotBytes: sb.SnapshotBytes,
	}
	if out.Metadata == nil {
		out.Metadata = map[string]string{}
	}
	return out
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
