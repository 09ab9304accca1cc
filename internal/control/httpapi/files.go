package httpapi

import (
	"context"
	"errors"
	"io"
	"mime/multipart"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// fileBuffer is the size of the buffers that file contents pass through, in bytes.
	fileBuffer = 1 << 20
	// maxFormField is the size of the largest form field that is not the file, in bytes;
	// more than any path may have.
	maxFormField = 8 << 10
	// After a write that failed, its client may go on sending for so long and so much
	// before it is cut off: most clients read an answer only when they have sent all.
	drainTime  = 10 * time.Second
	drainBytes = 1 << 30
)

// buffers are what file contents are copied through. Each is fileBuffer bytes.
var buffers = sync.Pool{New: func() any { b := make([]byte, fileBuffer); return &b }}

// fileHandlers is the API of files.
type fileHandlers struct{ files Files }

// ReadFile implements api.StrictServerInterface.
func (h fileHandlers) ReadFile(ctx context.Context, req api.ReadFileRequestObject) (api.ReadFileResponseObject, error) {
	c, err := h.files.Read(ctx, req.ID, req.Body.User, req.Body.Path)
	if err != nil {
		return nil, err
	}
	return api.ReadFile200ApplicationOctetStreamResponse{FileContentsApplicationOctetStreamResponse: answerContents(c)}, nil
}

// StreamReadFile implements api.StrictServerInterface.
func (h fileHandlers) StreamReadFile(ctx context.Context, req api.StreamReadFileRequestObject) (api.StreamReadFileResponseObject, error) {
	c, err := h.files.Read(ctx, req.ID, req.Body.User, req.Body.Path)
	if err != nil {
		return nil, err
	}
	return api.StreamReadFile200ApplicationOctetStreamResponse{FileContentsApplicationOctetStreamResponse: answerContents(c)}, nil
}

func answerContents(c sandbox.Contents) api.FileContentsApplicationOctetStreamResponse {
	return api.FileContentsApplicationOctetStreamResponse{
		Body: wide{c}, ContentLength: max(c.Size, 0),
	}
}

// wide is contents that are copied through a large buffer, whoever copies.
type wide struct{ sandbox.Contents }

// WriteTo implements io.WriterTo, which io.Copy prefers.
func (b wide) WriteTo(w io.Writer) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	// Bare of their other methods, neither side can choose a buffer of its own.
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{b.ReadCloser}, *buf)
}

// WriteFile implements api.StrictServerInterface.
func (h fileHandlers) WriteFile(ctx context.Context, req api.WriteFileRequestObject) (api.WriteFileResponseObject, error) {
	err := h.write(ctx, upload{req.ID, req.Params.Path, req.Params.User, req.Body, req.MultipartBody})
	return api.WriteFile204Response{}, err
}

// StreamWriteFile implements api.StrictServerInterface.
func (h fileHandlers) StreamWriteFile(ctx context.Context, req api.StreamWriteFileRequestObject) (api.StreamWriteFileResponseObject, error) {
	err := h.write(ctx, upload{req.ID, req.Params.Path, req.Params.User, req.Body, req.MultipartBody})
	return api.StreamWriteFile204Response{}, err
}

// upload is a file on its way in: as plain bytes in body, or in a form.
type upload struct {
	id, path, user string
	body           io.Reader
	form           *multipart.Reader
}

func (h fileHandlers) write(ctx context.Context, u upload) error {
	var file io.Reader
	size := int64(-1)
	if u.form == nil {
		file, size = u.body, bodySize(ctx)
		if u.path == "" {
			return fault.New(fault.InvalidRequest, "parameter \"path\" is missing; it says where to write the body")
		}
	} else {
		var err error
		if file, err = u.readForm(); err != nil {
			return err
		}
	}
	src := &sender{r: file}
	err := h.files.Write(ctx, u.id, u.user, u.path, src, size)
	if err != nil && src.err == nil {
		limitBody(ctx, drainTime)
		drain(file)
	}
	return err
}

// readForm reads the fields before the file, and returns the file.
func (u *upload) readForm() (io.Reader, error) {
	for {
		part, err := u.form.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.InvalidRequest, "the form has no field \"file\"")
		}
		if err != nil {
			return nil, badForm(err)
		}
		switch part.FormName() {
		case "path":
			u.path, err = readField(part)
		case "user":
			u.user, err = readField(part)
		case "file":
			if u.path == "" {
				return nil, fault.New(fault.InvalidRequest, "the form's field \"path\" is missing; it must come before \"file\"")
			}
			return part, nil
		default:
			err = fault.New(fault.InvalidRequest, "there is no field %q; the form has path, user and file", part.FormName())
		}
		if err != nil {
			return nil, err
		}
	}
}

func readField(part *multipart.Part) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(part, maxFormField+1))
	if err != nil {
		return "", badForm(err)
	}
	if len(raw) > maxFormField {
		return "", fault.New(fault.InvalidRequest, "the form's field %q is longer than %d bytes", part.FormName(), maxFormField)
	}
	return string(raw), nil
}

func badForm(err error) error {
	return fault.Wrap(err, fault.InvalidRequest, "the form cannot be read to its end; check that its boundary is right and that all of it was sent")
}

// sender reads what a client sends, and tells its failure from those of who takes it.
type sender struct {
	r   io.Reader
	err error
}

func (s *sender) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = badForm(err)
		return n, s.err
	}
	return n, err
}

// drain reads what a client still sends, up to drainBytes.
func drain(r io.Reader) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for left := int64(drainBytes); left > 0; {
		n, err := r.Read(*buf)
		if left -= int64(n); err != nil {
			return
		}
	}
}

// ListFiles implements api.StrictServerInterface.
func (h fileHandlers) ListFiles(ctx context.Context, req api.ListFilesRequestObject) (api.ListFilesResponseObject, error) {
	entries, err := h.files.List(ctx, req.ID, req.Body.User, req.Body.Path, max(req.Body.Depth, 1))
	if err != nil {
		return nil, err
	}
	out := api.ListFiles200JSONResponse{Entries: make([]api.FileEntry, len(entries))}
	for i, e := range entries {
		out.Entries[i] = encodeEntry(e)
	}
	return out, nil
}

// MakeDirectory implements api.StrictServerInterface.
func (h fileHandlers) MakeDirectory(ctx context.Context, req api.MakeDirectoryRequestObject) (api.MakeDirectoryResponseObject, error) {
	e, err := h.files.MakeDir(ctx, req.ID, req.Body.User, req.Body.Path)
	if err != nil {
		return nil, err
	}
	return api.MakeDirectory200JSONResponse{OfEntryJSONResponse: api.OfEntryJSONResponse{Entry: encodeEntry(e)}}, nil
}

// RemoveFile implements api.StrictServerInterface.
func (h fileHandlers) RemoveFile(ctx context.Context, req api.RemoveFileRequestObject) (api.RemoveFileResponseObject, error) {
	if err := h.files.Remove(ctx, req.ID, req.Body.User, req.Body.Path); err != nil {
		return nil, err
	}
	return api.RemoveFile204Response{}, nil
}

// MoveFile implements api.StrictServerInterface.
func (h fileHandlers) MoveFile(ctx context.Context, req api.MoveFileRequestObject) (api.MoveFileResponseObject, error) {
	e, err := h.files.Move(ctx, req.ID, req.Body.User, req.Body.From, req.Body.To)
	if err != nil {
		return nil, err
	}
	return api.MoveFile200JSONResponse{OfEntryJSONResponse: api.OfEntryJSONResponse{Entry: encodeEntry(e)}}, nil
}

// StatFile implements api.StrictServerInterface.
func (h fileHandlers) StatFile(ctx context.Context, req api.StatFileRequestObject) (api.StatFileResponseObject, error) {
	e, err := h.files.Stat(ctx, req.ID, req.Body.User, req.Body.Path)
	if err != nil {
		return nil, err
	}
	return api.StatFile200JSONResponse{OfEntryJSONResponse: api.OfEntryJSONResponse{Entry: encodeEntry(e)}}, nil
}

func encodeEntry(e sandbox.FileEntry) api.FileEntry {
	return api.FileEntry{
		Name: e.Name, Path: e.Path, Type: api.FileEntryType(e.Type), Size: e.Size,
		Mode: int64(e.Mode), Permissions: e.Permissions, Owner: e.Owner, Group: e.Group,
		ModifiedAt: e.ModifiedAt.Unix(), SymlinkTarget: e.SymlinkTarget,
	}
}
