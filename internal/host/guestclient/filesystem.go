package guestclient

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
)

// FileType is what a directory entry is.
type FileType int

// The types that a FileEntry tells apart. FileUnknown is neither of the others: a device,
// a pipe or a socket.
const (
	FileUnknown FileType = iota
	FileRegular
	FileDirectory
	FileSymlink
)

// FileEntry describes a file, directory or link of the guest.
type FileEntry struct {
	Name          string
	Path          string
	Type          FileType
	Size          int64 // bytes
	Mode          uint32
	Permissions   string // as ls prints them
	Owner         string
	Group         string
	ModifiedAt    time.Time
	SymlinkTarget string
}

func fromEntry(e *filesystem.EntryInfo) FileEntry {
	types := map[filesystem.FileType]FileType{
		filesystem.FileType_FILE_TYPE_FILE:      FileRegular,
		filesystem.FileType_FILE_TYPE_DIRECTORY: FileDirectory,
		filesystem.FileType_FILE_TYPE_SYMLINK:   FileSymlink,
	}
	fileType, permissions := types[e.GetType()], e.GetPermissions()
	// Of a link envd tells what it points to, and writes it as L where ls writes l; its
	// other clients expect that.
	if e.SymlinkTarget != nil || strings.HasPrefix(permissions, "L") {
		fileType, permissions = FileSymlink, "l"+strings.TrimPrefix(permissions, "L")
	}
	return FileEntry{
		Name: e.GetName(), Path: e.GetPath(), Type: fileType, Size: e.GetSize(), Mode: e.GetMode(),
		Permissions: permissions, Owner: e.GetOwner(), Group: e.GetGroup(),
		ModifiedAt: e.GetModifiedTime().AsTime(), SymlinkTarget: e.GetSymlinkTarget(),
	}
}

// Stat describes one path.
func (c *Client) Stat(ctx context.Context, path, user string) (FileEntry, error) {
	resp, err := c.directory.Stat(ctx, asUser(connect.NewRequest(&filesystem.StatRequest{Path: path}), user))
	if err != nil {
		return FileEntry{}, rpcError(ctx, err)
	}
	return fromEntry(resp.Msg.GetEntry()), nil
}

// List describes what is in a directory, depth levels down.
func (c *Client) List(ctx context.Context, path, user string, depth uint32) ([]FileEntry, error) {
	resp, err := c.directory.ListDir(ctx, asUser(connect.NewRequest(&filesystem.ListDirRequest{Path: path, Depth: depth}), user))
	if err != nil {
		return nil, rpcError(ctx, err)
	}
	list := make([]FileEntry, 0, len(resp.Msg.GetEntries()))
	for _, e := range resp.Msg.GetEntries() {
		list = append(list, fromEntry(e))
	}
	return list, nil
}

// MakeDir makes a directory and its parents; fault.Conflict when it is there already.
func (c *Client) MakeDir(ctx context.Context, path, user string) (FileEntry, error) {
	resp, err := c.directory.MakeDir(ctx, asUser(connect.NewRequest(&filesystem.MakeDirRequest{Path: path}), user))
	if err != nil {
		return FileEntry{}, rpcError(ctx, err)
	}
	return fromEntry(resp.Msg.GetEntry()), nil
}

// Move renames a path and makes the destination's parents.
func (c *Client) Move(ctx context.Context, source, destination, user string) (FileEntry, error) {
	resp, err := c.directory.Move(ctx, asUser(connect.NewRequest(&filesystem.MoveRequest{Source: source, Destination: destination}), user))
	if err != nil {
		return FileEntry{}, rpcError(ctx, err)
	}
	return fromEntry(resp.Msg.GetEntry()), nil
}

// Remove removes a path and all below it; one that is not there is no error.
func (c *Client) Remove(ctx context.Context, path, user string) error {
	_, err := c.directory.Remove(ctx, asUser(connect.NewRequest(&filesystem.RemoveRequest{Path: path}), user))
	return rpcError(ctx, err)
}
