// Package guestclient is the host's client of envd, the daemon inside a sandbox. It
// translates between the guest contracts (proto/guest and envd's HTTP endpoints) and
// the small types of this package, and nothing else: it decides nothing and keeps no
// state but its connections.
//
// A guest is hostile, envd's port included: root inside can put any program there. So
// nothing that it answers leads the host to another address, and everything is bounded.
package guestclient

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// Port is where envd listens in every sandbox.
const Port = 49983

// accessTokenHeader carries the token that envd was given at init.
const accessTokenHeader = "X-Access-Token" //nolint:gosec // the name of a header, not a secret

const (
	dialTimeout = 5 * time.Second
	// idleTimeout is shorter than envd's, so that it is never envd that closes a
	// connection in the moment we use it.
	idleTimeout = 5 * time.Minute
	// transferBuffer is what file contents are copied through. With the transport's
	// default of 4 KiB the guest's network stack reaches a fifth of its throughput.
	transferBuffer = 1 << 20
	// streamBuffer is what RPCs are read and written through. A command that prints much
	// is bound by system calls with less, and every running command holds two of them.
	streamBuffer   = 64 << 10
	maxIdlePerHost = 16

	// maxMessage bounds one message of the guest, in bytes. Its pieces of output are at
	// most 256 KiB; the longest listing that it gives is a few MiB.
	maxMessage = 16 << 20
	// maxHeaders bounds the headers of an answer of the guest, in bytes.
	maxHeaders = 64 << 10
)

// Client talks to the envd of one sandbox. It is safe for concurrent use. File contents
// have connections of their own, so that a large transfer never stands before a command.
type Client struct {
	processes

	base      string
	token     string
	conns     *connections
	rpc       *http.Client
	files     *http.Client
	directory filesystemconnect.FilesystemClient
}

// New returns a client of the envd that listens at address and expects token on every
// request. It opens no connection.
func New(address net.Addr, token string) *Client {
	conns := newConnections(address)
	c := &Client{
		base:  "http://" + address.String(),
		token: token,
		conns: conns,
		rpc:   newHTTPClient(conns.transport(streamBuffer)),
		files: newHTTPClient(conns.transport(transferBuffer)),
	}
	opts := connect.WithClientOptions(
		connect.WithInterceptors(fault.Interceptor(), tokenInterceptor(token)),
		connect.WithReadMaxBytes(maxMessage),
		// Nothing that comes from a guest is unpacked: a small message may hide a large one.
		connect.WithAcceptCompression("gzip", nil, nil),
	)
	c.waits = defaultWaits
	c.processes.rpc = processconnect.NewProcessClient(c.rpc, c.base, opts)
	c.directory = filesystemconnect.NewFilesystemClient(c.rpc, c.base, opts)
	return c
}

// newHTTPClient returns a client that follows no redirect: a guest must not send the host,
// which reaches what the guest may not, anywhere.
func newHTTPClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close ends every connection to the guest, in use or not: what waits for it fails at
// once. It is to be called when the guest is gone.
func (c *Client) Close() { c.CloseFor(errGone) }

var errGone = fault.New(fault.AgentError, "the sandbox has ended")

// CloseFor is Close for a reason: what fails because of it fails with that error.
func (c *Client) CloseFor(reason error) {
	c.conns.close(reason)
	c.DropIdle()
}

// DropIdle closes the connections that no request uses, so that none is used later that
// the guest does not know any more.
func (c *Client) DropIdle() {
	c.rpc.CloseIdleConnections()
	c.files.CloseIdleConnections()
}

// ReadFile opens a file of the guest. The caller closes Body. Size is its length in
// bytes, -1 when the guest does not know it.
func (c *Client) ReadFile(ctx context.Context, path, user string) (body io.ReadCloser, size int64, err error) {
	ctx, v := c.waits.watch(ctx, 0)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.filesURL(path, user), http.NoBody)
	if err != nil {
		v.end()
		return nil, 0, err
	}
	resp, err := c.ask(c.files, req)
	if err != nil {
		v.end()
		return nil, 0, err
	}
	v.ours()
	resp.Body = &download{ReadCloser: resp.Body, ctx: ctx, vigil: v}
	return resp.Body, resp.ContentLength, nil
}

// WriteFile streams body into a file of the guest, which then replaces what was there.
// size is its length in bytes, -1 when it is not known. When body fails, the file that
// was there stays.
func (c *Client) WriteFile(ctx context.Context, path, user string, body io.Reader, size int64) error {
	ctx, v := c.waits.watch(ctx, 0)
	defer v.end()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.filesURL(path, user), upload{body, v})
	if err != nil {
		return err
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.do(c.files, req)
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody) // so that the connection can be used again
	return resp.Body.Close()
}

func (c *Client) filesURL(path, user string) string {
	q := url.Values{"path": {path}}
	if user != "" {
		q.Set("username", user)
	}
	return c.base + "/files?" + q.Encode()
}

// do sends a request and turns an error status into an error. Only then, and when it
// fails, is the body closed.
func (c *Client) do(client *http.Client, req *http.Request) (*http.Response, error) {
	req.Header.Set(accessTokenHeader, c.token)
	resp, err := client.Do(req)
	if err != nil {
		return nil, unreachable(req.Context(), err)
	}
	if resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, guestError(resp)
}

// maxErrorBody bounds what is read of an error's body, in bytes.
const maxErrorBody = 64 << 10

// guestCodes is what the statuses of envd mean to our callers.
var guestCodes = map[int]fault.Code{
	http.StatusBadRequest: fault.InvalidRequest,
	// With a good token it is a user that does not exist: a mistake in the request, not
	// a matter of the caller's rights.
	http.StatusUnauthorized:          fault.InvalidRequest,
	http.StatusForbidden:             fault.Forbidden,
	http.StatusNotFound:              fault.NotFound,
	http.StatusNotAcceptable:         fault.NotAcceptable,
	http.StatusConflict:              fault.InvalidState,
	http.StatusRequestEntityTooLarge: fault.PayloadTooLarge,
	http.StatusTooManyRequests:       fault.RateLimited,
	http.StatusInsufficientStorage:   fault.NoSpace,
}

// guestError reads envd's {"code","message"}, where code repeats the status.
func guestError(resp *http.Response) error {
	var body struct {
		Message string `json:"message"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxErrorBody)).Decode(&body); err != nil || body.Message == "" {
		return fault.New(fault.AgentError, "the sandbox answered %q", resp.Status)
	}
	code, known := guestCodes[resp.StatusCode]
	if !known {
		code = fault.AgentError
	}
	return fault.New(code, "%s", body.Message)
}

// errNoAnswer is in the chain of errors of a guest that was not reached.
var errNoAnswer = errors.New("no answer")

// unreachable is the error for a request that got no answer.
func unreachable(ctx context.Context, err error) error {
	if closed := new(errClosed); errors.As(err, &closed) {
		return closed.reason
	}
	if why := givenUp(ctx); why != nil {
		return why
	}
	if ctx.Err() != nil {
		return fmt.Errorf("ask the sandbox: %w", ctx.Err())
	}
	return fault.Wrap(errors.Join(errNoAnswer, err), fault.AgentError, "the sandbox does not answer; it may have ended or run out of memory")
}

// asUser adds the user that an RPC runs as; empty means the sandbox's default.
func asUser[T any](req *connect.Request[T], user string) *connect.Request[T] {
	if user != "" {
		req.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
	return req
}

// rpcError maps what envd or the transport says to what it means for our caller.
func rpcError(ctx context.Context, err error) error {
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case errors.As(err, new(*errClosed)), givenUp(ctx) != nil:
		return unreachable(ctx, err)
	case ctx.Err() != nil:
		return fmt.Errorf("ask the sandbox: %w", ctx.Err())
	}
	var ce *connect.Error
	switch {
	case errors.As(err, &ce) && !connect.IsWireError(ce):
		return unreachable(ctx, err) // not the guest's word, but the transport's
	case fault.Is(err, fault.HostUnavailable), fault.Is(err, fault.Internal):
		return fault.Wrap(err, fault.AgentError, "%s", fault.MessageOf(err))
	case fault.Is(err, fault.Unauthorized):
		return fault.Wrap(err, fault.InvalidRequest, "%s", fault.MessageOf(err))
	}
	return err
}

// answerTime bounds calls that a guest that is well answers at once, so that one that is
// not holds up nobody for long.
const answerTime = 60 * time.Second

// treeTime is answerTime for what goes through a tree, which may be large.
const treeTime = 15 * time.Minute

// answerTimes is how long other calls may take; 0: as long as they take, since input waits
// for the process to read it.
var answerTimes = map[string]time.Duration{
	processconnect.ProcessSendInputProcedure:     0,
	filesystemconnect.FilesystemRemoveProcedure:  treeTime,
	filesystemconnect.FilesystemListDirProcedure: treeTime,
}

// tokenInterceptor puts the access token on every RPC.
func tokenInterceptor(token string) connect.Interceptor { return tokenHeader(token) }

type tokenHeader string

func (t tokenHeader) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set(accessTokenHeader, string(t))
		limit, known := answerTimes[req.Spec().Procedure]
		if !known {
			limit = answerTime
		}
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		resp, err := next(ctx, req)
		if reading[req.Spec().Procedure] && unanswered(ctx, err) {
			return next(ctx, req)
		}
		return resp, err
	}
}

func (t tokenHeader) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set(accessTokenHeader, string(t))
		return conn
	}
}

func (tokenHeader) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
