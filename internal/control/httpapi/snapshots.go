package httpapi

import (
	"context"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// snapshotHandlers is the API of snapshots, templates and copies.
type snapshotHandlers struct{ snapshots Snapshots }

// ForkSandbox implements api.StrictServerInterface.
func (h snapshotHandlers) ForkSandbox(ctx context.Context, req api.ForkSandboxRequestObject) (api.ForkSandboxResponseObject, error) {
	var body api.ForkRequest
	if req.Body != nil {
		body = *req.Body
	}
	copies, err := h.snapshots.Fork(ctx, req.ID, max(body.Count, 1), givenSeconds(body.TimeoutSec))
	if err != nil {
		return nil, err
	}
	out := make(api.ForkSandbox201JSONResponse, len(copies))
	for i, sb := range copies {
		out[i] = encodeSandbox(sb)
	}
	return out, nil
}

// CreateSnapshot implements api.StrictServerInterface.
func (h snapshotHandlers) CreateSnapshot(ctx context.Context, req api.CreateSnapshotRequestObject) (api.CreateSnapshotResponseObject, error) {
	snap, err := h.snapshots.Create(ctx, sandbox.SnapshotOptions{
		SandboxID: req.Body.SandboxID, Name: req.Body.Name, Overwrite: req.Params.Overwrite,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateSnapshot201JSONResponse(encodeSnapshot(snap)), nil
}

// ListSnapshots implements api.StrictServerInterface.
func (h snapshotHandlers) ListSnapshots(ctx context.Context, req api.ListSnapshotsRequestObject) (api.ListSnapshotsResponseObject, error) {
	want := req.Params.Type
	if want == "" {
		want = api.SnapshotTemplate
	}
	all, err := h.templates(ctx)
	if err != nil {
		return nil, err
	}
	out := api.ListSnapshots200JSONResponse{}
	for _, t := range all {
		if t.Type == want {
			out = append(out, t)
		}
	}
	return out, nil
}

// DeleteSnapshot implements api.StrictServerInterface.
func (h snapshotHandlers) DeleteSnapshot(ctx context.Context, req api.DeleteSnapshotRequestObject) (api.DeleteSnapshotResponseObject, error) {
	if err := h.snapshots.Delete(ctx, req.Name); err != nil {
		return nil, err
	}
	return api.DeleteSnapshot204Response{}, nil
}

// ListTemplates implements api.StrictServerInterface.
func (h snapshotHandlers) ListTemplates(ctx context.Context, _ api.ListTemplatesRequestObject) (api.ListTemplatesResponseObject, error) {
	all, err := h.templates(ctx)
	return api.ListTemplates200JSONResponse(all), err
}

// templates returns the server's own, and then the snapshots.
func (h snapshotHandlers) templates(ctx context.Context) ([]api.Template, error) {
	own, err := h.snapshots.Own(ctx)
	if err != nil {
		return nil, err
	}
	made, err := h.snapshots.List(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]api.Template, 0, len(own)+len(made))
	for _, t := range own {
		all = append(all, encodeOwn(t))
	}
	for _, s := range made {
		all = append(all, encodeSnapshot(s))
	}
	return all, nil
}

// GetTemplate implements api.StrictServerInterface.
func (h snapshotHandlers) GetTemplate(ctx context.Context, req api.GetTemplateRequestObject) (api.GetTemplateResponseObject, error) {
	t, found, err := h.own(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	if found {
		return api.GetTemplate200JSONResponse(encodeOwn(t)), nil
	}
	snap, err := h.snapshots.Find(ctx, req.Name)
	if err != nil {
		return nil, templateFault(err, req.Name)
	}
	return api.GetTemplate200JSONResponse(encodeSnapshot(snap)), nil
}

// DeleteTemplate implements api.StrictServerInterface.
func (h snapshotHandlers) DeleteTemplate(ctx context.Context, req api.DeleteTemplateRequestObject) (api.DeleteTemplateResponseObject, error) {
	_, found, err := h.own(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	if found {
		return nil, fault.New(fault.InvalidRequest, "template %q is the server's own and cannot be deleted", req.Name)
	}
	if err := h.snapshots.Delete(ctx, req.Name); err != nil {
		return nil, templateFault(err, req.Name)
	}
	return api.DeleteTemplate204Response{}, nil
}

// templateFault is the error of a snapshot that somebody looked for as a template.
func templateFault(err error, name string) error {
	if fault.Is(err, fault.NotFound) {
		return fault.Wrap(err, fault.NotFound, "there is no template %q", name)
	}
	return err
}

// own finds a template of the server's own.
func (h snapshotHandlers) own(ctx context.Context, name string) (t sandbox.OwnTemplate, found bool, err error) {
	all, err := h.snapshots.Own(ctx)
	for _, t := range all {
		if t.Name == name {
			return t, true, nil
		}
	}
	return sandbox.OwnTemplate{}, false, err
}

func encodeOwn(t sandbox.OwnTemplate) api.Template {
	return api.Template{
		ID: t.Name, Name: t.Name, Type: api.BaseTemplate,
		Vcpus: t.Resources.VCPUs, MemoryMb: t.Resources.MemoryMB, DiskSizeMb: t.Resources.DiskMB,
		DefaultEnv: map[string]string{},
	}
}

func encodeSnapshot(s sandbox.Snapshot) api.Template {
	return api.Template{
		ID: s.ID, Name: s.Name, Type: api.SnapshotTemplate,
		Vcpus: s.Resources.VCPUs, MemoryMb: s.Resources.MemoryMB, DiskSizeMb: s.Resources.DiskMB,
		SizeBytes: s.SizeBytes, DefaultUser: s.User, CreatedAt: s.CreatedAt,
		SandboxID: s.SandboxID, Template: s.Template, StoppedUs: s.Stopped.Microseconds(),
		Missing: s.Status == sandbox.SnapshotMissing, Damaged: s.Status == sandbox.SnapshotDamaged,
		DefaultEnv: map[string]string{}, // it stays on the host
	}
}
