package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

const (
	// crowdWindow is how long all of the crowd print before they are compared.
	crowdWindow = 3 * time.Second
	// crowdTarget is what the command that gets least must get of what the one that gets
	// most does.
	crowdTarget = 0.25
	// pipeBuffer is what the raw peer reads at once, in bytes: as much as a pipe holds.
	pipeBuffer = 64 << 10
)

// together measures whether commands that print without end, all at once, get alike.
func (b *bench) together(ctx context.Context) error {
	shares, speeds := make([][]float64, b.rounds), make([][]float64, b.rounds)
	followers := []follower{readPipes} // the raw peer comes first
	for _, d := range b.daemons() {
		followers = append(followers, d.followPrinting)
	}
	for round := range b.rounds {
		shares[round], speeds[round] = make([]float64, len(followers)), make([]float64, len(followers))
		for _, i := range turns(round, len(followers)) {
			share, speed, err := b.crowdOf(ctx, followers[i])
			if err != nil {
				return err
			}
			shares[round][i], speeds[round][i] = share, speed
		}
	}
	figures := medians(shares)
	r := row{
		what: fmt.Sprintf("%d commands printing at once: least by most", b.crowd), raw: compare("%.2f", figures[1], figures[0]),
		target: fmt.Sprintf("≥ %g", crowdTarget), verdict: verdict(figures[1] >= crowdTarget),
	}
	r.beside("%.2f", figures[1:], higher)
	b.table.add(r)
	figures = medians(speeds)
	all := row{what: fmt.Sprintf("%d commands printing at once: all, MB/s", b.crowd), raw: compare("%.0f", figures[1], figures[0])}
	all.beside("%.0f", figures[1:], higher)
	b.table.add(all)
	return nil
}

// printForever is what each of the crowd runs.
var printForever = &processpb.StartRequest{
	Process: &processpb.ProcessConfig{Cmd: "/usr/bin/yes", Args: []string{"a line that is printed without end"}},
	Stdin:   new(bool),
}

// follower runs printForever until end is closed. It calls printed with what came each
// time, first of all with 0 when the command has started.
type follower func(ctx context.Context, end <-chan struct{}, printed func(n int64)) error

// readPipes is the raw peer: the command's output is read from a pipe.
func readPipes(ctx context.Context, end <-chan struct{}, printed func(n int64)) error {
	cmd := exec.CommandContext(ctx, printForever.GetProcess().GetCmd(), printForever.GetProcess().GetArgs()...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	printed(0)
	go func() {
		<-end
		_ = cmd.Process.Kill() // it may have ended
	}()
	buffer := make([]byte, pipeBuffer)
	for err == nil { // until the kill ends it
		var n int
		n, err = pipe.Read(buffer)
		printed(int64(n))
	}
	_ = cmd.Wait() // it was killed
	return nil
}

// followPrinting follows the command of a daemon.
func (d *daemon) followPrinting(ctx context.Context, end <-chan struct{}, printed func(n int64)) error {
	killed := make(chan error, 1)
	err := d.follow(ctx, codecs[0], printForever, func(pid uint32, n int64) {
		printed(n)
		if pid == 0 {
			return
		}
		go func() {
			<-end
			killed <- kill(ctx, d.processes(), pid)
		}()
	})
	if err != nil {
		return fmt.Errorf("%s: %w", d.binary, err)
	}
	return <-killed
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
func (b *bench) crowdOf(ctx context.Context, follow follower) (share, speed float64, err error) {
	counts := make([]atomic.Int64, b.crowd)
	end := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	var started sync.WaitGroup
	started.Add(b.crowd)
	for i := range b.crowd {
		group.Go(func() error {
			tell := sync.OnceFunc(started.Done)
			defer tell() // also when it could not start
			return follow(ctx, end, func(n int64) {
				tell()
				counts[i].Add(n)
			})
		})
	}
	started.Wait()
	before, began := load(counts), time.Now()
	select {
	case <-time.After(crowdWindow):
	case <-ctx.Done():
	}
	after, took := load(counts), time.Since(began)
	close(end)
	share, total := leastByMost(before, after)
	return share, float64(total) / 1e6 / took.Seconds(), group.Wait()
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
