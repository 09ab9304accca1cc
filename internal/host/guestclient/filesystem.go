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
	fileType, permissions := types[e.GetType()], lsPermissions(e.GetPermissions())
	// Of a link envd tells the type of what it points to; its other clients expect that.
	if strings.HasPrefix(permissions, "l") {
		fileType = FileSymlink
	}
	return FileEntry{
		Name: e.GetName(), Path: e.GetPath(), Type: fileType, Size: e.GetSize(), Mode: e.GetMode(),
		Permissions: permissions, Owner: e.GetOwner(), Group: e.GetGroup(),
		ModifiedAt: e.GetModifiedTime().AsTime(), SymlinkTarget: e.GetSymlinkTarget(),
	}
}

// permissionBits is the length of rwxrwxrwx.
const permissionBits = 9

// lsPermissions turns permissions in Go's notation, such as dtrwxrwxrwx, into those that
// ls prints, such as drwxrwxrwt.
func lsPermissions(goNotation string) string {
	if len(goNotation) < permissionBits {
		return goNotation
	}
	kinds, bits := goNotation[:len(goNotation)-permissionBits], []byte(goNotation[len(goNotation)-permissionBits:])
	special := func(flag string, at int, with, without byte) {
		if !strings.Contains(kinds, flag) {
			return
		}
		if bits[at] == 'x' {
			bits[at] = with
		} else {
			bits[at] = without
		}
	}
	special("u", 2, 's', 'S')
	special("g", 5, 's', 'S')
	special("t", 8, 't', 'T')
	kind := "-"
	for _, k := range []struct{ flag, letter string }{{"d", "d"}, {"L", "l"}, {"p", "p"}, {"S", "s"}, {"c", "c"}, {"D", "b"}} {
		if strings.Contains(kinds, k.flag) {
			kind = k.letter
			break
		}
	}
	return kind + string(bits)
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
