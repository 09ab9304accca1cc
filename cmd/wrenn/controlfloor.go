package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"

	"github.com/wrenn-sandbox/wrenn/internal/control/account"
	"github.com/wrenn-sandbox/wrenn/internal/control/hostclient"
	"github.com/wrenn-sandbox/wrenn/internal/control/httpapi"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/control/store"
	"github.com/wrenn-sandbox/wrenn/internal/control/webproxy"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/profile"
)

// controlFloor is the running control floor.
type controlFloor struct {
	api *httpapi.API
	// edge is the way to the ports of sandboxes.
	edge *webproxy.Edge
	// key is the API key that was made at the first start.
	key string
	// failed gets an error when the floor cannot go on.
	failed chan error

	db        *store.DB
	host      *hostclient.Client
	proxy     *hostclient.ProxyTransport
	sandboxes *sandbox.Service
	stop      context.CancelFunc
	done      chan struct{}
}

// startControl starts the control floor over the host agent that listens on a socket; near is
// the proxy of that agent, which is in this process.
// It lives until it is closed: ctx bounds the start only.
func startControl(ctx context.Context, o upOptions, hostSocket string, near http.RoundTripper, log *slog.Logger) (c *controlFloor, err error) {
	c = &controlFloor{failed: make(chan error, 1), done: make(chan struct{}),
		host: hostclient.Dial(hostSocket), proxy: hostclient.NewProxyTransport(hostSocket, near)}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	if c.db, err = store.Open(ctx, "sqlite:"+filepath.Join(o.dataDir, "wrenn.db")); err != nil {
		stop()
		return nil, err
	}
	accounts := account.New(c.db.Keys(), log)
	if c.key, err = firstKey(ctx, accounts, credentialsPath(o.dataDir), log); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("make the first API key: %w", err), c.db.Close())
	}
	c.sandboxes = sandbox.New(sandbox.Config{
		Store: c.db.Sandboxes(), Clocks: c.db.Sandboxes(), SnapshotStore: c.db.Snapshots(),
		Host: c.host.Lifecycle, Snapshots: c.host.Snapshots, Processes: c.host.Processes, Files: c.host.Files, Ports: c.host.Ports,
		Warm: o.control.warm, Retention: o.control.retention(), Log: log,
	})
	c.edge = webproxy.New(webproxy.Config{
		Sandboxes: c.sandboxes.Traffic(), Host: c.proxy, Domain: o.domain,
		MaxConnections: o.control.proxyConnections, MaxVisits: o.budget.visits, RequestRate: o.control.proxyRate,
		TrustedProxies: o.control.trustedProxies, Log: log,
	})
	c.api, err = httpapi.New(httpapi.Config{
		Sandboxes: c.sandboxes, States: c.sandboxes, Snapshots: c.sandboxes.Snapshots(),
		Processes: c.sandboxes.Processes(), Files: c.sandboxes.Files(), Ports: c.sandboxes.Traffic(), Web: c.edge,
		Accounts: accounts, Log: log,
		Ready: func(ctx context.Context) error { return errors.Join(c.db.Ping(ctx), c.sandboxes.Ready(ctx)) },
	})
	if err != nil {
		stop()
		return nil, errors.Join(err, c.db.Close())
	}
	go func() {
		defer close(c.done)
		var beside sync.WaitGroup
		beside.Go(func() { c.edge.Run(life) })
		defer beside.Wait()
		if err := c.sandboxes.Run(life); err != nil {
			c.failed <- err
		}
	}()
	return c, nil
}

// beginStop tells those who follow a process that the server stops, and the floor that its
// host is about to go.
func (c *controlFloor) beginStop(ctx context.Context) {
	c.sandboxes.ExpectHostGone()
	_ = c.api.Close(ctx) // who does not listen is cut off with the server
	c.edge.Close()
}

// close stops the floor's own work, writes down what is to be kept, and closes the
// database.
func (c *controlFloor) close() error {
	c.stop()
	<-c.done
	c.host.Close()
	c.proxy.Close()
	return c.db.Close()
}

// firstKey returns the API key that the credentials file shall hold: the one that it
// holds, as long as it is valid, or a new one.
func firstKey(ctx context.Context, accounts *account.Service, path string, log *slog.Logger) (string, error) {
	key, err := accounts.EnsureFirst(ctx)
	if err != nil || key != "" {
		return key, err
	}
	kept, err := profile.Read(path)
	if err == nil {
		if _, err = accounts.Verify(ctx, kept.APIKey); err == nil {
			return kept.APIKey, nil
		}
		if !fault.Is(err, fault.Unauthorized) {
			return "", err
		}
	}
	log.Warn("the credentials file does not hold a valid key; a new one is made", "file", path, "reason", err)
	return accounts.Create(ctx, "recovered")
}
