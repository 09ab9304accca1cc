package rpc

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
)

// uploadIdle is how long an upload may bring nothing before it is given up.
const uploadIdle = 60 * time.Second

// written is how an upload's answer describes one file.
type written struct {
	Path string `json:"path"`
	Name string `json:"name"`
	Type string `json:"type"`
	// Metadata is what is kept about the file.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// What is read at most of an upload after it has failed.
const (
	drainBytes = 1 << 30
	drainTime  = 10 * time.Second
)

// upload answers POST /files. All of its files are replaced after all have arrived; if
// anything fails before, none is.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) error {
	err := s.receive(w, r)
	if err != nil {
		// A client that still sends would see a broken connection instead of the answer.
		if http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime)) == nil {
			_, _ = io.CopyN(io.Discard, r.Body, drainBytes) // best effort
		}
	}
	return err
}

// receive is upload up to its failure.
func (s *Server) receive(w http.ResponseWriter, r *http.Request) error {
	if err := s.fileAccess(r, signedWrite); err != nil {
		return err
	}
	user, err := s.fileUser(r)
	if err != nil {
		return err
	}
	up := uploading{server: s, user: user, targets: make(map[string]bool)}
	if up.metadata, err = metadataOf(r.Header); err != nil {
		return err
	}
	defer up.abort()
	control := http.NewResponseController(w)
	// The connection may serve other requests, at their own pace.
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	body, err := decoded(&impatientReader{body: r.Body, control: control, idle: uploadIdle}, r.Header)
	if err != nil {
		return uploadError(err)
	}

	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err == nil && strings.HasPrefix(mediaType, "multipart/"):
		err = up.readParts(body, params["boundary"], r.URL.Query().Get("path"))
	case err == nil && mediaType == "application/octet-stream":
		if !r.URL.Query().Has("path") || r.URL.Query().Get("path") == "" {
			return fault.New(fault.InvalidRequest, "the query parameter 'path' is missing; it says where the file is to be written")
		}
		err = up.readFile(body, r.URL.Query().Get("path"))
	default:
		return fault.New(fault.InvalidRequest,
			"unsupported content type '%s'; use application/octet-stream or multipart/form-data", r.Header.Get("Content-Type"))
	}
	if err != nil {
		return uploadError(err)
	}
	files, err := up.commit()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(files) // the client may be gone; the files are there
	return nil
}

// uploadError tells a body that did not arrive from a fault of the daemon.
func uploadError(err error) error {
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.As(err, new(flate.CorruptInputError)):
		return corruptGzip(err)
	case errors.Is(err, multipart.ErrMessageTooLarge):
		return fault.Wrap(err, fault.InvalidRequest, "the headers of a part are too large; nothing was written")
	case errors.As(err, new(textproto.ProtocolError)):
		return fault.Wrap(err, fault.InvalidRequest, "the body is not multipart, as its Content-Type says; nothing was written")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.Wrap(err, fault.InvalidRequest, "nothing of the upload came for %v, so it was given up", uploadIdle)
	}
	return fault.Wrap(err, fault.InvalidRequest, "the upload ended before it was complete; nothing was written")
}

// uploading is one upload in progress.
type uploading struct {
	server   *Server
	user     identity.User
	metadata map[string]string
	files    []written
	pending  []*filesystem.Replacement
	targets  map[string]bool
}

// readFile takes src as the content of the file that given names.
func (u *uploading) readFile(src io.Reader, given string) error {
	path, err := filesystem.Resolve(given, u.user.Home, u.server.identity.Workdir())
	if err != nil {
		return err
	}
	file, err := filesystem.Replace(path, ownerOf(u.user))
	if err != nil {
		return err
	}
	u.pending = append(u.pending, file)
	if u.targets[file.Target()] {
		return fault.New(fault.InvalidRequest, "path '%s' is in the upload more than once", path)
	}
	for dir := filepath.Dir(file.Target()); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if u.targets[dir] {
			return fault.New(fault.InvalidRequest, "path '%s' is below another file of the upload; nothing was written", path)
		}
	}
	u.targets[file.Target()] = true
	if _, err := file.ReadFrom(src); err != nil {
		return err
	}
	one := written{Path: path, Name: filepath.Base(path), Type: "file"}
	kept, err := file.SetMetadata(u.metadata)
	if err != nil {
		return err
	}
	if kept {
		one.Metadata = u.metadata
	}
	u.files = append(u.files, one)
	return nil
}

// cutOff is the header of a part that is read only if the body lacks its last boundary.
const cutOff = "Wrenn-Cut-Off"

// readParts takes every part of a multipart body that is named file. Its path is given,
// or else its whole file name.
func (u *uploading) readParts(body io.Reader, boundary, given string) error {
	if boundary == "" {
		return fault.New(fault.InvalidRequest, "the multipart content type has no boundary")
	}
	// The reader takes the end of the body for the end of the last part. A part put behind
	// it shows whether there was a last boundary.
	body = io.MultiReader(body, strings.NewReader("\r\n--"+boundary+"\r\n"+cutOff+": yes\r\n\r\n"))
	// A multipart reader asks for 4 KiB at a time; the buffer turns that into few calls.
	parts := multipart.NewReader(bufio.NewReaderSize(body, filesystem.CopyBuffer), boundary)
	for {
		part, err := parts.NextRawPart()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case part.Header.Get(cutOff) != "":
			return io.ErrUnexpectedEOF
		case part.FormName() != "file":
			continue
		}
		path := given
		if path == "" {
			if path = fileName(part); path == "" {
				return fault.New(fault.InvalidRequest, "a part named 'file' has no filename; give one, or the query parameter 'path'")
			}
		}
		if err := u.readFile(part, path); err != nil {
			return err
		}
	}
}

// fileName returns a part's file name as it was sent. Part.FileName would return the last
// element of it only, and the SDKs send whole paths.
func fileName(part *multipart.Part) string {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return ""
	}
	return params["filename"]
}

// commit gives every file its new content.
func (u *uploading) commit() ([]written, error) {
	for len(u.pending) > 0 {
		if err := u.pending[0].Commit(); err != nil {
			return nil, err
		}
		u.pending = u.pending[1:]
	}
	if u.files == nil {
		u.files = []written{}
	}
	return u.files, nil
}

func (u *uploading) abort() {
	for _, file := range slices.Backward(u.pending) {
		file.Abort()
	}
}
