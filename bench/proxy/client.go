package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// clientConns is how many idle connections a client keeps.
	clientConns = 128
	// openLimit bounds the wait for a server that has just been started.
	openLimit = 30 * time.Second
	openPoll  = 20 * time.Millisecond
)

// dialer opens the connections of a client, to wherever it is; nil for what the address says.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newClient returns a client of HTTP/1.1 with connections of its own.
func newClient(dial dialer) *http.Client {
	h1 := new(http.Protocols)
	h1.SetHTTP1(true)
	return &http.Client{Transport: &http.Transport{
		DialContext: dial, Protocols: h1, MaxIdleConns: clientConns, MaxIdleConnsPerHost: clientConns, DisableCompression: true,
	}}
}

// unixDialer dials a socket whatever the address says.
func unixDialer(socket string) dialer {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
}

// get makes a request whose answer is good. The caller closes its body.
func get(ctx context.Context, client *http.Client, address string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s answered %s", address, resp.Status)
	}
	return resp, nil
}

// fetch makes a request and takes all of its answer.
func fetch(ctx context.Context, client *http.Client, address string) error {
	resp, err := get(ctx, client, address)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// awaitAnswer waits until a server gives a good answer.
func awaitAnswer(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	client := newClient(nil)
	defer client.CloseIdleConnections()
	tick := time.NewTicker(openPoll)
	defer tick.Stop()
	for {
		err := fetch(ctx, client, address)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
