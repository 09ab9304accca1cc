package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

const (
	// crowdWindow is how long all of the crowd print before they are compared.
	crowdWindow = 3 * time.Second
	// crowdTarget is what the command that gets least must get of what the one that gets
	// most does.
	crowdTarget = 0.25
)

// together measures whether commands that print without end, all at once, get alike.
func (b *bench) together(ctx context.Context) error {
	shares, speeds := make([][]float64, b.rounds), make([][]float64, b.rounds)
	for round := range b.rounds {
		for _, d := range b.daemons() {
			share, speed, err := b.crowdOf(ctx, d)
			if err != nil {
				return fmt.Errorf("%s: %w", d.binary, err)
			}
			shares[round], speeds[round] = append(shares[round], share), append(speeds[round], speed)
		}
	}
	r := row{
		what:   fmt.Sprintf("%d commands printing at once: least by most", b.crowd),
		target: fmt.Sprintf("≥ %g", crowdTarget),
	}
	figures := medians(shares)
	r.verdict = verdict(figures[0] >= crowdTarget)
	r.beside("%.2f", figures, higher)
	b.table.add(r)
	all := row{what: fmt.Sprintf("%d commands printing at once: all, MB/s", b.crowd)}
	all.beside("%.0f", medians(speeds), higher)
	b.table.add(all)
	return nil
}

// medians are the medians of rounds of figures, daemon by daemon.
func medians(rounds [][]float64) []float64 {
	var out []float64
	for i := range rounds[0] {
		var of []float64
		for _, figures := range rounds {
			of = append(of, figures[i])
		}
		slices.Sort(of)
		out = append(out, of[len(of)/2])
	}
	return out
}

// crowdOf returns how the least compares with the most, and what all printed, in MB/s.
func (b *bench) crowdOf(ctx context.Context, d *daemon) (share, speed float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	counts := make([]atomic.Int64, b.crowd)
	pids := make([]atomic.Uint32, b.crowd)
	var started, done sync.WaitGroup
	failures := make(chan error, b.crowd)
	started.Add(b.crowd)
	for i := range b.crowd {
		done.Go(func() {
			start := &processpb.StartRequest{
				Process: &processpb.ProcessConfig{Cmd: "/usr/bin/yes", Args: []string{"a line that is printed without end"}}, Stdin: new(bool),
			}
			tell := sync.OnceFunc(started.Done)
			defer tell()
			failures <- d.follow(ctx, codecs[0], start, func(pid uint32, n int64) {
				if pid != 0 {
					pids[i].Store(pid)
					tell()
				}
				counts[i].Add(n)
			})
		})
	}
	started.Wait()
	before, began := load(counts), time.Now()
	select {
	case <-time.After(crowdWindow):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	after, took := load(counts), time.Since(began)
	for i := range pids {
		if pid := pids[i].Load(); pid != 0 {
			err = first(err, kill(ctx, d.processes(), pid))
		}
	}
	done.Wait()
	for range b.crowd {
		err = first(err, <-failures)
	}
	share, total := leastByMost(before, after)
	return share, float64(total) / 1e6 / took.Seconds(), err
}

func load(counts []atomic.Int64) []int64 {
	var out []int64
	for i := range counts {
		out = append(out, counts[i].Load())
	}
	return out
}

// leastByMost compares what the counts have grown by, and sums it up.
func leastByMost(before, after []int64) (share float64, total int64) {
	var grown []int64
	for i := range after {
		grown = append(grown, after[i]-before[i])
		total += after[i] - before[i]
	}
	if most := slices.Max(grown); most > 0 {
		share = float64(slices.Min(grown)) / float64(most)
	}
	return share, total
}
