package hostclient

import (
	"context"
	"io"
	"net/http"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// Files implements sandbox.HostFiles. What files hold travels over HTTP/1.1 connections
// of its own, so that a large transfer never makes a command wait.
type Files struct {
	rpc  hostv1connect.HostServiceClient
	http *http.Client
}

var _ sandbox.HostFiles = (*Files)(nil)

// Stat implements sandbox.HostFiles.
func (f *Files) Stat(ctx context.Context, id, user, path string) (sandbox.FileEntry, error) {
	resp, err := f.rpc.StatFile(ctx, connect.NewRequest(&hostv1.StatFileRequest{SandboxId: id, User: user, Path: path}))
	if err != nil {
		return sandbox.FileEntry{}, err
	}
	return fromEntry(resp.Msg.GetEntry()), nil
}

// List implements sandbox.HostFiles.
func (f *Files) List(ctx context.Context, id, user, path string, depth int) ([]sandbox.FileEntry, error) {
	resp, err := f.rpc.ListDirectory(ctx, connect.NewRequest(&hostv1.ListDirectoryRequest{
		SandboxId: id, User: user, Path: path, Depth: uint32(depth),
	}))
	if err != nil {
		return nil, err
	}
	entries := make([]sandbox.FileEntry, 0, len(resp.Msg.GetEntries()))
	for _, e := range resp.Msg.GetEntries() {
		entries = append(entries, fromEntry(e))
	}
	return entries, nil
}

// MakeDir implements sandbox.HostFiles.
func (f *Files) MakeDir(ctx context.Context, id, user, path string) (sandbox.FileEntry, error) {
	resp, err := f.rpc.MakeDirectory(ctx, connect.NewRequest(&hostv1.MakeDirectoryRequest{SandboxId: id, User: user, Path: path}))
	if err != nil {
		return sandbox.FileEntry{}, err
	}
	return fromEntry(resp.Msg.GetEntry()), nil
}

// Move implements sandbox.HostFiles.
func (f *Files) Move(ctx context.Context, id, user, from, to string) (sandbox.FileEntry, error) {
	resp, err := f.rpc.MoveFile(ctx, connect.NewRequest(&hostv1.MoveFileRequest{SandboxId: id, User: user, Source: from, Destination: to}))
	if err != nil {
		return sandbox.FileEntry{}, err
	}
	return fromEntry(resp.Msg.GetEntry()), nil
}

// Remove implements sandbox.HostFiles.
func (f *Files) Remove(ctx context.Context, id, user, path string) error {
	_, err := f.rpc.RemoveFile(ctx, connect.NewRequest(&hostv1.RemoveFileRequest{SandboxId: id, User: user, Path: path}))
	return err
}

// Read implements sandbox.HostFiles.
func (f *Files) Read(ctx context.Context, id, user, path string) (sandbox.Contents, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+hostv1.FilesURL(id, path, user), http.NoBody)
	if err != nil {
		return sandbox.Contents{}, err
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return sandbox.Contents{}, unreached(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return sandbox.Contents{}, fault.ReadHTTP(resp)
	}
	return sandbox.Contents{ReadCloser: resp.Body, Size: resp.ContentLength}, nil
}

// Write implements sandbox.HostFiles.
func (f *Files) Write(ctx context.Context, id, user, path string, r io.Reader, size int64) error {
	body := &source{r: r}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, baseURL+hostv1.FilesURL(id, path, user), body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody // otherwise 0 would mean that the size is unknown
	}
	req.Header.Set("Expect", "100-continue")
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := f.http.Do(req)
	cause := body.release()
	if err != nil {
		// How the sender failed says more than that the transfer broke of it.
		if cause != nil {
			return cause
		}
		return unreached(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusOK {
		return fault.ReadHTTP(resp)
	}
	return nil
}

var fileTypes = map[hostv1.FileType]sandbox.FileType{
	hostv1.FileType_FILE_TYPE_FILE:      sandbox.RegularFile,
	hostv1.FileType_FILE_TYPE_DIRECTORY: sandbox.Directory,
	hostv1.FileType_FILE_TYPE_SYMLINK:   sandbox.Symlink,
	// Devices, sockets and pipes: what they hold is read and written like a file.
	hostv1.FileType_FILE_TYPE_UNSPECIFIED: sandbox.RegularFile,
}

func fromEntry(e *hostv1.FileEntry) sandbox.FileEntry {
	return sandbox.FileEntry{
		Name: e.GetName(), Path: e.GetPath(), Type: fileTypes[e.GetType()],
		Size: e.GetSize(), Mode: e.GetMode(), Permissions: e.GetPermissions(),
		Owner: e.GetOwner(), Group: e.GetGroup(),
		ModifiedAt: e.GetModifiedAt().AsTime(), SymlinkTarget: e.GetSymlinkTarget(),
	}
}
