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
}

// init tells the sandbox who it is, and wakes a daemon that was resting for a snapshot.
func (s *Server) init(w http.ResponseWriter, r *http.Request) error {
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
	}
	s.addMetadata(r.Context(), &up)
	if err := s.identity.Apply(up, r.Header.Get(tokenHeader)); err != nil {
		return err
	}
	// Also when what it says is old news: that is a matter of two clocks, and a daemon that
	// nobody wakes would stay half asleep for ever.
	if err := s.lifecycle.Wake(r.Context()); err != nil {
		return err
	}
	w.Header().Set("X-Envd-Version", Version)
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
