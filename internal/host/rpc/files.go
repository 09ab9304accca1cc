package rpc

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
)

func (s *server) StatFile(ctx context.Context, req *connect.Request[hostv1.StatFileRequest]) (*connect.Response[hostv1.StatFileResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	e, err := guest.Stat(ctx, req.Msg.GetPath(), req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.StatFileResponse{Entry: toEntry(e)}), nil
}

func (s *server) ListDirectory(ctx context.Context, req *connect.Request[hostv1.ListDirectoryRequest]) (*connect.Response[hostv1.ListDirectoryResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	entries, err := guest.List(ctx, req.Msg.GetPath(), req.Msg.GetUser(), req.Msg.GetDepth())
	if err != nil {
		return nil, err
	}
	resp := &hostv1.ListDirectoryResponse{}
	for _, e := range entries {
		resp.Entries = append(resp.Entries, toEntry(e))
	}
	return connect.NewResponse(resp), nil
}

func (s *server) MakeDirectory(ctx context.Context, req *connect.Request[hostv1.MakeDirectoryRequest]) (*connect.Response[hostv1.MakeDirectoryResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	e, err := guest.MakeDir(ctx, req.Msg.GetPath(), req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.MakeDirectoryResponse{Entry: toEntry(e)}), nil
}

func (s *server) MoveFile(ctx context.Context, req *connect.Request[hostv1.MoveFileRequest]) (*connect.Response[hostv1.MoveFileResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	e, err := guest.Move(ctx, req.Msg.GetSource(), req.Msg.GetDestination(), req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.MoveFileResponse{Entry: toEntry(e)}), nil
}

func (s *server) RemoveFile(ctx context.Context, req *connect.Request[hostv1.RemoveFileRequest]) (*connect.Response[hostv1.RemoveFileResponse], error) {
	guest, err := s.Sandboxes.Guest(req.Msg.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if err := guest.Remove(ctx, req.Msg.GetPath(), req.Msg.GetUser()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&hostv1.RemoveFileResponse{}), nil
}

var toFileType = map[guestclient.FileType]hostv1.FileType{
	guestclient.FileRegular:   hostv1.FileType_FILE_TYPE_FILE,
	guestclient.FileDirectory: hostv1.FileType_FILE_TYPE_DIRECTORY,
	guestclient.FileSymlink:   hostv1.FileType_FILE_TYPE_SYMLINK,
}

func toEntry(e guestclient.FileEntry) *hostv1.FileEntry {
	return &hostv1.FileEntry{
		Name: e.Name, Path: e.Path, Type: toFileType[e.Type], Size: e.Size, Mode: e.Mode, Permissions: e.Permissions,
		Owner: e.Owner, Group: e.Group, ModifiedAt: timestamppb.New(e.ModifiedAt), SymlinkTarget: e.SymlinkTarget,
	}
}

// fileHandler answers a request for a file's contents. serve returns an error only
// while nothing has been written.
func (s *server) fileHandler(serve func(http.ResponseWriter, *http.Request, *guestclient.Client) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		guest, err := s.Sandboxes.Guest(r.URL.Query().Get(hostv1.SandboxParam))
		if err == nil {
			err = serve(w, r, guest)
		}
		if err != nil {
			errorLog{s.Log}.report(r.Context(), r.Method+" "+hostv1.FilesPath, err)
			drain(w, r)
			fault.WriteHTTP(w, err)
		}
	}
}

// What drain reads at most of a body that nobody wants.
const (
	drainBytes = 1 << 30
	drainTime  = 10 * time.Second
)

// drain reads on for a while after a failure: a client that is still sending sees a
// broken pipe, and not the answer, when the connection is closed under it.
func drain(w http.ResponseWriter, r *http.Request) {
	if r.Body == http.NoBody {
		return
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTime)); err != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, r.Body, drainBytes) // best effort
}

// copyBuffer is what file contents are copied through, in bytes; see guestclient.
const copyBuffer = 1 << 20

func (s *server) readFile(w http.ResponseWriter, r *http.Request, guest *guestclient.Client) error {
	q := r.URL.Query()
	body, size, err := guest.ReadFile(r.Context(), q.Get(hostv1.PathParam), q.Get(hostv1.UserParam))
	if err != nil {
		return err
	}
	defer body.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if size >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	if _, err := io.CopyBuffer(onlyWriter{w}, body, make([]byte, copyBuffer)); err != nil {
		// The status is sent. Cutting the connection is the only way left to say that
		// these are not all the bytes.
		s.Log.WarnContext(r.Context(), "read file", "sandbox", q.Get(hostv1.SandboxParam), "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// onlyWriter hides ReadFrom, which would copy through a buffer of 32 KiB.
type onlyWriter struct{ io.Writer }

func (s *server) writeFile(w http.ResponseWriter, r *http.Request, guest *guestclient.Client) error {
	q := r.URL.Query()
	err := guest.WriteFile(r.Context(), q.Get(hostv1.PathParam), q.Get(hostv1.UserParam), r.Body, r.ContentLength)
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
