package guestclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Init is what envd is told about the sandbox it runs in.
type Init struct {
	AccessToken string   `json:"accessToken"`
	SandboxID   string   `json:"sandboxID"`
	TemplateID  string   `json:"templateID"`
	Hostname    string   `json:"hostname"`
	Nameservers []string `json:"nameservers"`
	// EnvVars replaces the environment; nil leaves it as it is.
	EnvVars     map[string]string `json:"envVars"`
	DefaultUser string            `json:"defaultUser,omitempty"`
	Timestamp   time.Time         `json:"timestamp"`
}

const (
	// initAttempt bounds one attempt to tell a guest who it is. It answers in milliseconds;
	// what is longer is a connection that has been lost.
	initAttempt = 5 * time.Second
	initRetry   = 20 * time.Millisecond
)

// Init tells envd its identity, and wakes it after a Prepare. It may be called again at any
// time. While the guest does not answer it is asked again, until ctx ends; what the guest
// refuses is an error at once.
func (c *Client) Init(ctx context.Context, in Init) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	tick := time.NewTicker(initRetry)
	defer tick.Stop()
	for {
		err := c.post(ctx, "/init", body, initAttempt)
		// Only silence may be over in a moment.
		if !fault.Is(err, fault.DeadlineExceeded) && !errors.Is(err, errNoAnswer) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// prepareTime bounds Prepare: envd gives its files 30 s to reach their disk.
const prepareTime = 40 * time.Second

// Prepare makes the guest ready to be written down. Unless it is live, which is for a guest
// that goes on as if nothing had been, it rests then until the next Init.
func (c *Client) Prepare(ctx context.Context, live bool) error {
	path := "/snapshot/prepare"
	if live {
		path += "?live=true"
	}
	if err := c.post(ctx, path, nil, prepareTime); err != nil {
		return err
	}
	c.DropIdle()
	return nil
}

// post sends a request whose answer has no body.
func (c *Client) post(ctx context.Context, path string, body []byte, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.do(c.rpc, req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

const (
	// readyPoll is how often WaitReady asks. A refused connection costs the guest
	// nothing, and every millisecond here is one of a create.
	readyPoll = 2 * time.Millisecond
	// readyAttemptTimeout bounds one attempt: a connection made before the guest's
	// network is up would otherwise wait for TCP's retransmission.
	readyAttemptTimeout = 250 * time.Millisecond
)

// WaitReady blocks until envd answers, or ctx ends.
func (c *Client) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := c.health(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for envd: %w (last: %w)", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (c *Client) health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyAttemptTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/health", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := c.do(c.rpc, req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
