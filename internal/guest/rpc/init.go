package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
)

// maxInit bounds the body of an init request, in bytes.
const maxInit = 4 << 20

// initRequest is the body of POST /init, as far as it means something here.
type initRequest struct {
	AccessToken    string            `json:"accessToken"`
	EnvVars        map[string]string `json:"envVars"`
	Timestamp      time.Time         `json:"timestamp"`
	DefaultUser    string            `json:"defaultUser"`
	DefaultWorkdir string            `json:"defaultWorkdir"`
	Hostname       string            `json:"hostname"`
	Nameservers    []string          `json:"nameservers"`
	SandboxID      string            `json:"sandboxID"`
	TemplateID     string            `json:"templateID"`
	// HyperloopIP is the address of the service that takes events of programs.
	HyperloopIP string `json:"hyperloopIP"`
	CABundle    string `json:"caBundle"`
	// VolumeMounts would be file systems of the network. They are refused: who got them not
	// and was told nothing would write to what is not kept.
	VolumeMounts []json.RawMessage `json:"volumeMounts"`
	// LifecycleID tells one life of a sandbox from the next, so that mounts of volumes are
	// made anew; without any it means nothing.
	LifecycleID string `json:"lifecycleID"`
}

// init tells the sandbox who it is, and wakes a daemon that was resting for a snapshot.
func (s *Server) init(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("X-Envd-Version", Version) // also of a refusal
	var req initRequest
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit)).Decode(&req)
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil, errors.Is(err, io.EOF): // an empty body says nothing new
	case errors.As(err, &tooLarge):
		return fault.New(fault.PayloadTooLarge, "the body is larger than %d bytes", tooLarge.Limit)
	default:
		return fault.New(fault.InvalidRequest, "the body is not valid JSON of this request: %v", err)
	}
	if len(req.VolumeMounts) > 0 {
		return fault.New(fault.InvalidRequest, "volumes cannot be mounted in this sandbox, which knows no network file systems; leave 'volumeMounts' out")
	}
	up := identity.Update{
		Token:       req.AccessToken,
		Env:         req.EnvVars,
		Timestamp:   req.Timestamp,
		DefaultUser: req.DefaultUser,
		Workdir:     req.DefaultWorkdir,
		SandboxID:   req.SandboxID,
		TemplateID:  req.TemplateID,
		Hostname:    req.Hostname,
		Nameservers: req.Nameservers,
		EventsIP:    req.HyperloopIP,
		CABundle:    req.CABundle,
	}
	s.addMetadata(r.Context(), &up)
	failed := s.identity.Apply(up, r.Header.Get(tokenHeader))
	if failed != nil && !fault.Is(failed, fault.Internal) {
		return failed
	}
	// Also when what it says is old news, which is a matter of two clocks, or could not be
	// written down: a daemon that nobody wakes would stay half asleep for ever.
	if err := s.lifecycle.Wake(r.Context()); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// addMetadata adds to an update what the machine's metadata says and the request does not,
// where there is such a service. A sandbox is to be reached without it, too.
func (s *Server) addMetadata(ctx context.Context, up *identity.Update) {
	if s.metadata == nil {
		return
	}
	said, err := s.metadata(ctx)
	if err != nil {
		s.logger.WarnContext(ctx, "read the metadata", "err", err)
		return
	}
	up.TokenHash = said.AccessTokenHash
	if up.SandboxID == "" {
		up.SandboxID = said.SandboxID
	}
	if up.TemplateID == "" {
		up.TemplateID = said.TemplateID
	}
}
