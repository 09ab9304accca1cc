package rpc

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

// maxCompose bounds the body of a compose request, in bytes.
const maxCompose = 1 << 20

// composeRequest is the body of POST /files/compose.
type composeRequest struct {
	SourcePaths []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// compose makes one file of several, which are removed.
func (s *Server) compose(w http.ResponseWriter, r *http.Request) error {
	var req composeRequest
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCompose)).Decode(&req)
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return fault.New(fault.PayloadTooLarge, "the body is larger than %d bytes", maxCompose)
	case err != nil:
		return fault.New(fault.InvalidRequest, "the body is not valid JSON of this request: %v", err)
	case len(req.SourcePaths) == 0:
		return fault.New(fault.InvalidRequest, "'source_paths' is empty; name the files to compose")
	case req.Destination == "":
		return fault.New(fault.InvalidRequest, "'destination' is missing; it says which file to make")
	}
	user, err := s.lookUp(req.Username)
	if err != nil {
		return err
	}
	paths := make([]string, 0, len(req.SourcePaths)+1)
	for _, given := range append(req.SourcePaths, req.Destination) {
		path, err := filesystem.Resolve(given, user.Home, s.identity.Workdir())
		if err != nil {
			return err
		}
		paths = append(paths, path)
	}
	sources, destination := paths[:len(paths)-1], paths[len(paths)-1]
	entry, err := s.files.Compose(r.Context(), sources, destination, ownerOf(user))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	// The client may be gone; the file is there.
	_ = json.NewEncoder(w).Encode(written{Path: entry.Path, Name: entry.Name, Type: "file", Metadata: entry.Metadata})
	return nil
}
