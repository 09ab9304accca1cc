package rpc

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"

	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
)

// download answers GET /files: the contents of a file, or ranges of it.
func (s *Server) download(w http.ResponseWriter, r *http.Request) error {
	if err := s.fileAccess(r); err != nil {
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
	header := w.Header()
	header.Set("Content-Disposition", disposition(filepath.Base(path)))
	header.Set("Vary", "Accept-Encoding")
	if info.Size() == 0 {
		return sendUnsized(w, r, file)
	}
	http.ServeContent(largeWrites{w}, r, filepath.Base(path), info.ModTime(), file)
	return nil
}

// fileUser returns whose file a request means.
func (s *Server) fileUser(r *http.Request) (identity.User, error) {
	if query := r.URL.Query(); query.Has("username") {
		return s.identity.User(query.Get("username"))
	}
	return s.user(r.Header)
}

func disposition(name string) string {
	if value := mime.FormatMediaType("inline", map[string]string{"filename": name}); value != "" {
		return value
	}
	return "inline"
}

// firstPiece is how much of a file without a size is read to see whether it is empty.
const firstPiece = 4 << 10

// sendUnsized sends a file whose size is said to be 0: an empty one, or one of the
// kernel's, as in /proc, that says so and has content.
func sendUnsized(w http.ResponseWriter, r *http.Request, file *os.File) error {
	first := make([]byte, firstPiece)
	n, err := file.Read(first)
	if n == 0 {
		if err != nil && err != io.EOF {
			return filesystem.Unreadable(err, file.Name())
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	w.Header().Set("Content-Type", http.DetectContentType(first[:n]))
	if r.Method == http.MethodHead {
		return nil
	}
	// From here on a failure can only be shown by the client's not getting the end.
	if _, err := filesystem.Copy(w, io.MultiReader(bytes.NewReader(first[:n]), file)); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// largeWrites is a ResponseWriter that copies in large pieces. http.ServeContent knows all
// of ranges and conditions and copies with io.Copy, which asks the destination first.
type largeWrites struct{ http.ResponseWriter }

func (w largeWrites) ReadFrom(src io.Reader) (int64, error) {
	return filesystem.Copy(w.ResponseWriter, src)
}

// Unwrap lets http.ResponseController find what it needs.
func (w largeWrites) Unwrap() http.ResponseWriter { return w.ResponseWriter }
