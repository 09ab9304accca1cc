package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	// What the two hops may add to a request, what of the throughput they must leave, and
	// how they must compare with nginx's.
	addedTarget      = 500 * time.Microsecond
	throughputTarget = 0.7
	nginxFactor      = 1.2
	// requestEvery is how often each of the peers gets a request: 200 times a second.
	requestEvery = 5 * time.Millisecond
	warmRequests = 50
	mib          = 1 << 20
)

// peer is a way to the server in the sandbox.
type peer struct {
	name   string
	base   string
	client *http.Client
	times  report.Times
	speeds report.Times // what a bulk download took
}

// The order of peers.
const (
	direct = iota
	ours
	nginx
)

// peers starts nginx and returns the ways to compare.
func (b *bench) peers(ctx context.Context) (_ []*peer, stop func() error, err error) {
	address, stop, err := b.startNginx(ctx)
	if err != nil {
		return nil, nil, err
	}
	return []*peer{
		direct: {name: "direct", base: b.direct(), client: newClient(nil)},
		ours:   {name: "wrenn", base: b.proxied(), client: newClient(nil)},
		nginx:  {name: "nginx", base: "http://" + address, client: newClient(nil)},
	}, stop, nil
}

// latency measures what the hops add to small requests, in turns, 200 a second of each.
func (b *bench) latency(ctx context.Context) (err error) {
	peers, stop, err := b.peers(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	round, all := 0, warmRequests+b.rounds*b.requests
	err = every(ctx, requestEvery, func() error {
		for i := range peers {
			p := peers[(round+i)%len(peers)]
			began := time.Now()
			if err := fetch(ctx, p.client, p.base+"/ping"); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if round >= warmRequests {
				p.times = append(p.times, time.Since(began))
			}
		}
		if round++; round == all {
			return io.EOF
		}
		return nil
	})
	if !errors.Is(err, io.EOF) {
		return errors.Join(err, ctx.Err())
	}
	for _, q := range []struct {
		name  string
		share float64
	}{{"median", 0.5}, {"p99", tail}} {
		bare, with, beside := peers[direct].times.Quantile(q.share), peers[ours].times.Quantile(q.share), peers[nginx].times.Quantile(q.share)
		row := report.Row{
			What: "a request at 200/s, " + q.name + ", beside direct", Ours: micros(with), Raw: micros(bare), Ratio: report.Ratio(float64(with), float64(bare)),
		}
		besides := report.Row{
			What: "a request at 200/s, " + q.name + ", beside nginx", Ours: micros(with), Raw: micros(beside), Ratio: report.Ratio(float64(with), float64(beside)),
		}
		if q.name == "median" {
			row.Target, row.Met = fmt.Sprintf("adds %s (adds %s)", micros(addedTarget), micros(with-bare)), with-bare <= addedTarget
			besides.Target, besides.Met = fmt.Sprintf("ratio %.1f", nginxFactor), float64(with) <= nginxFactor*float64(beside)
		}
		b.table.Add(row)
		b.table.Add(besides)
	}
	return nil
}

// throughput measures bulk downloads, in turns.
func (b *bench) throughput(ctx context.Context) (err error) {
	peers, stop, err := b.peers(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for round := range b.rounds {
		for i := range peers {
			p := peers[(round+i)%len(peers)]
			began := time.Now()
			if err := fetch(ctx, p.client, fmt.Sprintf("%s/bytes?n=%d", p.base, b.bulk*mib)); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			p.speeds = append(p.speeds, time.Since(began))
		}
	}
	speed := func(i int) float64 { return float64(b.bulk*mib) / 1e6 / peers[i].speeds.Median().Seconds() }
	rate := func(i int) string { return fmt.Sprintf("%.0f MB/s", speed(i)) }
	b.table.Add(report.Row{
		What: "a bulk download, beside direct", Ours: rate(ours), Raw: rate(direct), Ratio: report.Ratio(speed(ours), speed(direct)),
		Target: fmt.Sprintf("ratio %.1f", throughputTarget), Met: speed(ours) >= throughputTarget*speed(direct),
	})
	b.table.Add(report.Row{
		What: "a bulk download, beside nginx", Ours: rate(ours), Raw: rate(nginx), Ratio: report.Ratio(speed(ours), speed(nginx)),
		Target: fmt.Sprintf("ratio %.2f", 1/nginxFactor), Met: speed(ours)*nginxFactor >= speed(nginx),
	})
	return nil
}

// micros writes a short duration.
func micros(d time.Duration) string { return fmt.Sprintf("%d µs", d.Microseconds()) }
