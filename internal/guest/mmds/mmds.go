// Package mmds is the guest's client of the metadata service of a microVM (Firecracker's
// MMDS, version 2), from which a sandbox learns who it is: after a restore it is another
// than the memory that it woke with.
//
// It must not know what the daemon does with that. Where there is no such service, as in
// gVisor, it is not used at all.
package mmds

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Address is where every microVM finds the service.
const Address = "http://169.254.169.254"

const (
	// patience bounds one reading. The service is the machine's own monitor, which answers
	// in less than a millisecond; an init must not wait long for one that is not there.
	patience = 2 * time.Second
	// tokenLife is how long the token for one reading is good.
	tokenLife = time.Minute
	// maxToken and maxAnswer bound what is read, in bytes.
	maxToken  = 1 << 10
	maxAnswer = 64 << 10
)

// Metadata is what the service says. What it leaves out is empty.
type Metadata struct {
	SandboxID  string `json:"instanceID"`
	TemplateID string `json:"envID"`
	// AccessTokenHash is the SHA-512, in lower-case hexadecimal digits, of the token that
	// may be set whatever is set now.
	AccessTokenHash string `json:"accessTokenHash"`
}

// Client reads from one service. It is safe for concurrent use.
type Client struct {
	base string
	http *http.Client
}

// New returns a client of the service at base, such as Address.
func New(base string) *Client {
	return &Client{base: strings.TrimSuffix(base, "/"), http: &http.Client{
		// No proxy of the environment, and no connection that a snapshot would keep.
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       patience,
	}}
}

// Read asks for what the service says now.
func (c *Client) Read(ctx context.Context) (Metadata, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	token, err := c.ask(ctx, http.MethodPut, "/latest/api/token", maxToken,
		"X-metadata-token-ttl-seconds", strconv.Itoa(int(tokenLife.Seconds())))
	if err != nil {
		return Metadata{}, err
	}
	answer, err := c.ask(ctx, http.MethodGet, "/", maxAnswer, "X-metadata-token", string(token), "Accept", "application/json")
	if err != nil {
		return Metadata{}, err
	}
	var out Metadata
	if err := json.Unmarshal(answer, &out); err != nil {
		return Metadata{}, fault.Wrap(err, fault.Internal, "the metadata service does not answer with JSON of its metadata")
	}
	return out, nil
}

// ask makes one request with headers, given in pairs, and returns the body of its answer.
func (c *Client) ask(ctx context.Context, method, path string, limit int64, headers ...string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, http.NoBody)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "the address of the metadata service is no URL")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "the metadata service does not answer")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fault.New(fault.Internal, "the metadata service answers %s %s with %q", method, path, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, fault.Wrap(err, fault.Internal, "the answer of the metadata service broke off")
	case int64(len(body)) > limit:
		return nil, fault.New(fault.Internal, "the answer of the metadata service to %s %s is larger than %d bytes", method, path, limit)
	}
	return body, nil
}
