package guestclient

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// A connection may break before there is an answer although guest and network are well, such
// as when one side has closed it and the other does not know yet. The transport asks again by
// itself only when it had used the connection before. What changes nothing in the guest is
// asked once more in any case, on another connection; the rest cannot be, since nobody knows
// whether it was done.

// reading are the RPCs that change nothing.
var reading = map[string]bool{
	filesystemconnect.FilesystemStatProcedure:    true,
	filesystemconnect.FilesystemListDirProcedure: true,
	processconnect.ProcessListProcedure:          true,
}

// ask is do for a request that has no body and changes nothing.
func (c *Client) ask(client *http.Client, req *http.Request) (*http.Response, error) {
	resp, err := c.do(client, req)
	if errors.Is(err, errNoAnswer) {
		return c.do(client, req)
	}
	return resp, err
}

// unanswered reports whether an RPC has failed for want of an answer, and not for that of its
// caller's patience.
func unanswered(ctx context.Context, err error) bool {
	var failed *connect.Error
	return errors.As(err, &failed) && !connect.IsWireError(err) && ctx.Err() == nil && !errors.As(err, new(*errClosed))
}
