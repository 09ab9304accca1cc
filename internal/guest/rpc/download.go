package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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
	defer filesystem.InterruptWith(r.Context(), file)()
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
		refuseNothing(r.Header)
		http.ServeContent(&contentWriter{ResponseWriter: w, size: info.Size()}, r, filepath.Base(path), info.ModTime(), file)
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

// beyond is a range that no file has.
const beyond = "9223372036854775807-"

// refuseNothing makes the last 0 bytes, which RFC 9110 (14.1.2) says no file can satisfy, a
// range that http.ServeContent finds so too; it would send an empty part.
func refuseNothing(header http.Header) {
	unit, list, found := strings.Cut(header.Get("Range"), "=")
	if !found {
		return
	}
	ranges := strings.Split(list, ",")
	for i, one := range ranges {
		start, length, _ := strings.Cut(one, "-")
		if n, err := strconv.ParseInt(strings.TrimSpace(length), 10, 64); err == nil && n == 0 && strings.TrimSpace(start) == "" {
			ranges[i] = beyond
		}
	}
	header.Set("Range", unit+"="+strings.Join(ranges, ","))
}

// contentWriter is the ResponseWriter of http.ServeContent, which knows all of ranges and
// conditions. It copies in large pieces, where that would use io.Copy, which asks the
// destination first; and it answers for a range that cannot be had as for every error.
type contentWriter struct {
	http.ResponseWriter
	size    int64 // of the file, in bytes
	refused bool
}

func (w *contentWriter) WriteHeader(status int) {
	if status != http.StatusRequestedRangeNotSatisfiable {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.refused = true
	writeStatus(w.ResponseWriter, status, fmt.Sprintf("the file has no such range of bytes; its size is %d", w.size))
}

func (w *contentWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil // the answer is written
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom is how io.Copy hands over to a writer.
func (w *contentWriter) ReadFrom(src io.Reader) (int64, error) {
	return filesystem.Copy(w.ResponseWriter, src)
}

// Unwrap lets http.ResponseController find what it needs.
func (w *contentWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
