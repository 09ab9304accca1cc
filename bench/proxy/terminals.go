package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	// echoPause is how long a person waits between two keys, at most quick ones.
	echoPause = 10 * time.Millisecond
	// warmEchoes are taken before anything is counted.
	warmEchoes = 20
	// What a terminal under load may take at the p99: so many times as without, and so long.
	loadedRatio = 3
	loadedLimit = 25 * time.Millisecond
	tail        = 0.99

	// hangLimit is when a terminal counts as hung.
	hangLimit = 5 * time.Second

	// smallWindow is a flow control for a whole connection as other programs than Go's have
	// it, in bytes. Go's own is a gigabyte.
	smallWindow = 1 << 20
	// The settings with which the control floor calls the host agent, in bytes.
	streamWindow = 1 << 20
	frameSize    = 512 << 10
)

// echoer is a terminal in the sandbox that sends back each byte.
type echoer interface {
	// echo types a byte and returns when it has come back.
	echo(ctx context.Context, key byte) error
	close()
}

// setting is one of the things to compare: a terminal, and a load or none.
type setting struct {
	name   string
	open   func(ctx context.Context) (echoer, error)
	load   func(ctx context.Context) (running, error) // nil: none
	times  report.Times
	served string // what came through of the load, of the last round
}

// terminals measures round trips of a terminal's echo: over the whole stack, and as the
// control floor has them, once on a connection of their own and once on one for all.
func (b *bench) terminals(ctx context.Context) error {
	socket := filepath.Join("/run/wrenn", b.server.Instance, "host.sock")
	plain := newClient(unixDialer(socket))
	apart, one, small := newH2Client(socket, 0), newH2Client(socket, 0), newH2Client(socket, smallWindow)
	defer func() {
		for _, client := range []*http.Client{apart, one, small, plain} {
			client.CloseIdleConnections()
		}
	}()
	open := func(client *http.Client) func(context.Context) (echoer, error) {
		return func(ctx context.Context) (echoer, error) { return openRPC(ctx, client, b.sandbox.ID) }
	}
	// Here terminal and load have to be one process's, as they are the control floor's.
	here := func(client *http.Client) func(context.Context) (running, error) {
		w := way{client: client, sockets: plain, base: "http://host" + b.prefix()}
		return func(ctx context.Context) (running, error) { return startLoad(ctx, w) }
	}
	there := func(ctx context.Context) (running, error) { return loadElsewhere(ctx, b.proxied()) }
	settings := []*setting{
		{name: "no load", open: b.openTerminal},
		{name: "under load", open: b.openTerminal, load: there},
		{name: "by RPC, no load", open: open(apart)},
		{name: "by RPC, under load, apart", open: open(apart), load: here(plain)},
		{name: "by RPC, under load, all on one HTTP/2 connection", open: open(one), load: here(one)},
		{name: "by RPC, under load, all on one HTTP/2 connection with a window of 1 MiB", open: open(small), load: here(small)},
	}
	for range b.rounds {
		for _, s := range settings {
			if err := s.measure(ctx, b.echoes); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	b.addTerminals(settings)
	for _, s := range settings {
		b.curves = append(b.curves, curve{s.name, s.times})
	}
	return nil
}

func (s *setting) measure(ctx context.Context, echoes int) (err error) {
	if s.load != nil {
		l, err := s.load(ctx)
		if err != nil {
			return err
		}
		defer func() {
			s.served = l.describe()
			err = errors.Join(err, l.stop())
		}()
	}
	hung, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := time.AfterFunc(hangLimit, cancel)
	defer watch.Stop()
	terminal, err := s.open(hung)
	if err == nil {
		defer terminal.close()
	}
	for i := range warmEchoes + echoes {
		began := time.Now()
		watch.Reset(hangLimit)
		if err == nil {
			err = terminal.echo(hung, byte('a'+i%26))
		}
		if hung.Err() != nil && ctx.Err() == nil { // and so it would for all that follow
			s.times = append(s.times, slices.Repeat(report.Times{hangLimit}, echoes-max(i-warmEchoes, 0))...)
			return nil
		}
		if err != nil {
			return err
		}
		if i >= warmEchoes {
			s.times = append(s.times, time.Since(began))
		}
		select {
		case <-time.After(echoPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// addTerminals puts into the table what was measured: each setting beside the one without a
// load that came before it.
func (b *bench) addTerminals(settings []*setting) {
	quiet := settings[0]
	for _, s := range settings {
		what := "terminal echo, " + s.name
		if s.load == nil {
			quiet = s
		} else {
			what += " (" + s.served + ")"
		}
		b.table.Add(report.Row{
			What: what + ", median", Ours: report.MS(s.times.Median()), Raw: report.MS(quiet.times.Median()),
			Ratio: report.Ratio(float64(s.times.Median()), float64(quiet.times.Median())),
		})
		worst, before := s.times.Quantile(tail), quiet.times.Quantile(tail)
		row := report.Row{
			What: "terminal echo, " + s.name + ", p99", Ours: report.MS(worst), Raw: report.MS(before),
			Ratio: report.Ratio(float64(worst), float64(before)),
		}
		if s == settings[1] {
			row.Target = fmt.Sprintf("ratio %d, %s", loadedRatio, report.MS(loadedLimit))
			row.Met = worst <= loadedRatio*before && worst <= loadedLimit
		}
		b.table.Add(row)
	}
}

// newH2Client returns a client of the host agent's socket that has one connection, of
// HTTP/2, for whatever it is used for. Its settings are the control floor's but for the
// window of the connection, unless that is 0.
func newH2Client(socket string, window int) *http.Client {
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		DialContext: unixDialer(socket), Protocols: h2, DisableCompression: true,
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: streamWindow, MaxReadFrameSize: frameSize, MaxReceiveBufferPerConnection: window},
	}}
}
