package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	// idleTarget is what an idle WebSocket may take in the server, in KiB.
	idleTarget = 40
	// openAtOnce bounds how many are opened at the same time.
	openAtOnce = 16
	// restTime is how long the server then gets to come to rest.
	restTime = 3 * time.Second
	kibibyte = 1024
)

// idleSockets measures what WebSockets take over which nothing goes. Both hops are in the
// one process of the server.
func (b *bench) idleSockets(ctx context.Context) error {
	client := newClient(nil)
	w := way{client: client, sockets: client, base: b.proxied()}
	before, err := b.server.Memory("VmRSS:")
	if err != nil {
		return err
	}
	conns := make([]*websocket.Conn, b.idle)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.CloseNow()
			}
		}
	}()
	group, opening := errgroup.WithContext(ctx)
	group.SetLimit(openAtOnce)
	for i := range conns {
		group.Go(func() error {
			conn, err := dialSocket(opening, w)
			conns[i] = conn
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	select {
	case <-time.After(restTime):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := b.server.Memory("VmRSS:")
	if err != nil {
		return err
	}
	// They are all still there.
	for i, conn := range conns {
		if err := conn.Write(ctx, websocket.MessageText, []byte("still here")); err != nil {
			return fmt.Errorf("WebSocket %d: %w", i, err)
		}
		if _, _, err := conn.Read(ctx); err != nil {
			return fmt.Errorf("WebSocket %d: %w", i, err)
		}
	}
	if len(conns) == 0 {
		return errors.New("no WebSockets were asked for")
	}
	each := (after - before) * kibibyte / float64(len(conns))
	b.table.Add(report.Row{
		What: fmt.Sprintf("%d idle WebSockets, each, both hops", len(conns)), Ours: fmt.Sprintf("%.1f KiB", each), Raw: "-", Ratio: "-",
		Target: fmt.Sprintf("%d KiB", idleTarget), Met: each <= idleTarget,
	})
	return nil
}
