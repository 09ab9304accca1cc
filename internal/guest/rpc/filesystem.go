package rpc

import (
	"context"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
)

// filesystemService is the Connect service filesystem.Filesystem.
type filesystemService struct {
	filesystemconnect.UnimplementedFilesystemHandler
	server *Server
}

// Stat describes one path.
func (s filesystemService) Stat(_ context.Context, req *connect.Request[filesystempb.StatRequest]) (*connect.Response[filesystempb.StatResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	entry, err := s.server.files.Stat(path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystempb.StatResponse{Entry: entryInfo(entry)}), nil
}

// ListDir describes what is in a directory.
func (s filesystemService) ListDir(ctx context.Context, req *connect.Request[filesystempb.ListDirRequest]) (*connect.Response[filesystempb.ListDirResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	entries, err := s.server.files.List(ctx, path, req.Msg.GetDepth())
	if err != nil {
		return nil, err
	}
	out := &filesystempb.ListDirResponse{Entries: make([]*filesystempb.EntryInfo, 0, len(entries))}
	for _, entry := range entries {
		out.Entries = append(out.Entries, entryInfo(entry))
	}
	return connect.NewResponse(out), nil
}

// MakeDir makes a directory and those above it.
func (s filesystemService) MakeDir(_ context.Context, req *connect.Request[filesystempb.MakeDirRequest]) (*connect.Response[filesystempb.MakeDirResponse], error) {
	path, user, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	entry, err := s.server.files.MakeDir(path, ownerOf(user))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystempb.MakeDirResponse{Entry: entryInfo(entry)}), nil
}

// Move renames a file or directory.
func (s filesystemService) Move(ctx context.Context, req *connect.Request[filesystempb.MoveRequest]) (*connect.Response[filesystempb.MoveResponse], error) {
	source, _, err := s.resolve(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	destination, user, err := s.resolve(req.Header(), req.Msg.GetDestination())
	if err != nil {
		return nil, err
	}
	entry, err := s.server.files.Move(ctx, source, destination, ownerOf(user))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystempb.MoveResponse{Entry: entryInfo(entry)}), nil
}

// Remove removes a file, or a directory with all that is in it.
func (s filesystemService) Remove(_ context.Context, req *connect.Request[filesystempb.RemoveRequest]) (*connect.Response[filesystempb.RemoveResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if err := s.server.files.Remove(path); err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystempb.RemoveResponse{}), nil
}

// resolve returns the absolute path that a request means, and the user that it is for.
func (s filesystemService) resolve(header http.Header, given string) (string, identity.User, error) {
	user, err := s.server.user(header)
	if err != nil {
		return "", identity.User{}, err
	}
	path, err := filesystem.Resolve(given, user.Home, s.server.identity.Workdir())
	return path, user, err
}

func ownerOf(user identity.User) filesystem.Owner {
	return filesystem.Owner{UID: user.UID, GID: user.GID}
}

func entryInfo(e filesystem.Entry) *filesystempb.EntryInfo {
	out := &filesystempb.EntryInfo{
		Name: text(e.Name), Path: text(e.Path), Size: e.Size, Mode: e.Mode, Permissions: e.Permissions,
		Owner: text(e.Owner), Group: text(e.Group), ModifiedTime: timestamppb.New(e.ModTime),
	}
	switch e.Type {
	case filesystem.File:
		out.Type = filesystempb.FileType_FILE_TYPE_FILE
	case filesystem.Directory:
		out.Type = filesystempb.FileType_FILE_TYPE_DIRECTORY
	}
	if e.SymlinkTarget != "" {
		target := text(e.SymlinkTarget)
		out.SymlinkTarget = &target
	}
	if len(e.Metadata) > 0 {
		out.Metadata = make(map[string]string, len(e.Metadata))
		for key, value := range e.Metadata {
			out.Metadata[text(key)] = text(value)
		}
	}
	return out
}
