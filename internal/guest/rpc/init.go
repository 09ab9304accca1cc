package rpc

import (
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
	err = s.identity.Apply(identity.Update{
		Token:       req.AccessToken,
		Env:         req.EnvVars,
		Timestamp:   req.Timestamp,
		DefaultUser: req.DefaultUser,
		Workdir:     req.DefaultWorkdir,
		SandboxID:   req.SandboxID,
		TemplateID:  req.TemplateID,
		Hostname:    req.Hostname,
		Nameservers: req.Nameservers,
	}, r.Header.Get(tokenHeader))
	if err != nil {
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
