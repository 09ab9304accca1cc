// Package hostclient is the control floor's client of the host agent: it translates
// between the sandbox package's types and the host's RPC and plain HTTP paths, and does
// nothing else. It decides nothing, keeps nothing and retries nothing.
package hostclient

import (
	"context"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

const (
	// baseURL names nothing: the transports dial the socket whatever the URL says.
	baseURL = "http://host"
	// streamWindow is how much output of one command may wait here for a slow reader, in
	// bytes, before the command itself has to wait.
	streamWindow = 1 << 20
	// frameSize is the largest piece that the host sends at once, in bytes. The usual
	// 16 KiB cuts every larger piece of output into many, each with system calls of its own.
	frameSize = 512 << 10
	// fileBuffer is the size of the buffers between a file transfer and its socket, in
	// bytes. With the usual 4 KiB a transfer is bound by system calls.
	fileBuffer = 1 << 20
	// fileConns is how many idle connections for files are kept.
	fileConns   = 16
	idleTimeout = 90 * time.Second
	// continueTimeout is how long a write waits for the host to want its body: an error
	// that is known before, such as an unknown sandbox, then costs no transfer.
	continueTimeout = time.Second
)

// Client is a client of one host agent; its parts implement what the sandbox package
// asks of a host. It is safe for concurrent use; Close it when done.
type Client struct {
	Lifecycle *Lifecycle
	Snapshots *Snapshots
	Processes *Processes
	Files     *Files
	Ports     *Ports

	rpc, files *http.Transport
}

// Dial returns a client of the host agent that listens on a Unix socket. It does not
// connect before the first call, and connects again when the agent was restarted.
func Dial(socketPath string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socketPath)
	}
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	rpc := &http.Transport{
		DialContext: dial,
		Protocols:   h2,
		HTTP2:       &http.HTTP2Config{MaxReceiveBufferPerStream: streamWindow, MaxReadFrameSize: frameSize},
	}
	h1 := new(http.Protocols)
	h1.SetHTTP1(true)
	files := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return newLastWord(conn), nil
		},
		Protocols:             h1,
		ReadBufferSize:        fileBuffer,
		WriteBufferSize:       fileBuffer,
		MaxIdleConnsPerHost:   fileConns,
		IdleConnTimeout:       idleTimeout,
		ExpectContinueTimeout: continueTimeout,
		DisableCompression:    true,
	}
	client := hostv1connect.NewHostServiceClient(&http.Client{Transport: rpc}, baseURL,
		connect.WithInterceptors(reached{}, fault.Interceptor()),
		// The socket is on this machine, where compression costs more than it saves.
		connect.WithAcceptCompression("gzip", nil, nil),
	)
	return &Client{
		Lifecycle: &Lifecycle{client},
		Snapshots: &Snapshots{client},
		Processes: &Processes{client},
		Files:     &Files{rpc: client, http: &http.Client{Transport: files}},
		Ports:     &Ports{client},
		rpc:       rpc, files: files,
	}
}

// Close closes the connections that nobody uses. What is under way goes on.
func (c *Client) Close() {
	c.rpc.CloseIdleConnections()
	c.files.CloseIdleConnections()
}
