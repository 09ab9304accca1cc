package rpc

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"

	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

// download answers GET /files: the contents of a file, or ranges of it.
func (s *Server) download(w http.ResponseWriter, r *http.Request) error {
	if err := s.fileAccess(r, signedRead); err != nil {
		return err
	}
	user, err := s.fileUser(r)
	if err != nil {
		return err
	}
	path, err := filesystem.Resolve(r.URL.Query().Get("path"), user.Home, s.identity.Workdir())
	if err != nil {
		return err
	}
	file, info, err := filesystem.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	accepted, err := negotiate(r.Header)
	if err != nil {
		return err
	}
	first, err := beginning(file)
	if err != nil {
		return filesystem.Unreadable(err, path)
	}
	header := w.Header()
	header.Set("Content-Disposition", disposition(filepath.Base(path)))
	header.Set("Vary", "Accept-Encoding")
	header.Set("Content-Type", contentType(path, first))
	zip := accepted.zip(header.Get("Content-Type"))
	switch {
	case len(first) == 0: // SDKs want to read that it is empty
		header.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
	case zip:
		header.Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
		sendZipped(w, r, io.MultiReader(bytes.NewReader(first), file))
	case info.Size() == 0:
		// One of the kernel's, as in /proc, that says so and has content.
		sendUnsized(w, r, io.MultiReader(bytes.NewReader(first), file))
	default:
		http.ServeContent(largeWrites{w}, r, filepath.Base(path), info.ModTime(), file)
	}
	return nil
}

func disposition(name string) string {
	if value := mime.FormatMediaType("inline", map[string]string{"filename": name}); value != "" {
		return value
	}
	return "inline"
}

// firstPiece is how much of a file is read to see what it is, in bytes: as much as
// http.DetectContentType looks at.
const firstPiece = 512

// beginning reads the first piece of a file.
func beginning(file *os.File) ([]byte, error) {
	first := make([]byte, firstPiece)
	n, err := io.ReadFull(file, first)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return first[:n], nil
}

func contentType(path string, first []byte) string {
	if len(first) == 0 {
		return "application/octet-stream"
	}
	if known := mime.TypeByExtension(filepath.Ext(path)); known != "" {
		return known
	}
	return http.DetectContentType(first)
}

// sendUnsized sends what has no length that is known before.
func sendUnsized(w http.ResponseWriter, r *http.Request, src io.Reader) {
	if r.Method == http.MethodHead {
		return
	}
	// From here on a failure can only be shown by the client's not getting the end.
	if _, err := filesystem.Copy(w, src); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// largeWrites is a ResponseWriter that copies in large pieces. http.ServeContent knows all
// of ranges and conditions and copies with io.Copy, which asks the destination first.
type largeWrites struct{ http.ResponseWriter }

func (w largeWrites) ReadFrom(src io.Reader) (int64, error) {
	return filesystem.Copy(w.ResponseWriter, src)
}

// Unwrap lets http.ResponseController find what it needs.
func (w largeWrites) Unwrap() http.ResponseWriter { return w.ResponseWriter }
