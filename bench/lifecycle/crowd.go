package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/bare"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	// idleFor is for how long an idle crowd's use of the processors is measured.
	idleFor = 10 * time.Second
	percent = 100
	mib     = 1 << 20
	// machineMiB is the machine that the crowd has to fit into, in MiB.
	machineMiB = 24 << 10
)

// many has a crowd of idle sandboxes at once and measures what they take.
func (b *bench) many(ctx context.Context) (err error) {
	began := time.Now()
	ids, err := b.createAll(ctx, b.crowd)
	defer func() { err = errors.Join(err, b.removeAll(ids)) }()
	took := time.Since(began)
	if err != nil {
		return err
	}
	var each []float64
	var sum float64
	for _, id := range ids {
		inUse, err := bare.MemoryInUse("/wrenn-"+b.server.Instance, id)
		if err != nil {
			return err
		}
		each = append(each, float64(inUse)/mib)
		sum += float64(inUse) / mib
	}
	slices.Sort(each)
	agent, err := b.server.Memory("VmRSS:")
	if err != nil {
		return err
	}
	used, usedByAgent, err := b.idle(ctx)
	if err != nil {
		return err
	}
	var all errgroup.Group
	all.SetLimit(b.atOnce)
	for _, id := range ids {
		all.Go(func() error { return says(ctx, b.server, id) })
	}
	if err := all.Wait(); err != nil {
		return err
	}
	crowd := fmt.Sprintf("%d idle sandboxes", b.crowd)
	b.table.Add(report.Row{
		What: crowd + ": created, all usable", Ours: fmt.Sprintf("%.1f s", took.Seconds()),
		Target: fmt.Sprintf("all, in %d GiB", machineMiB>>10), Met: sum+agent < machineMiB,
	})
	b.table.Add(report.Row{What: crowd + ": memory of each, median; of all", Ours: fmt.Sprintf("%.1f MiB; %.0f MiB", each[len(each)/2], sum)})
	b.table.Add(report.Row{What: crowd + ": memory of wrenn", Ours: fmt.Sprintf("%.0f MiB", agent)})
	b.table.Add(report.Row{What: crowd + ": cpu of all; of wrenn", Ours: fmt.Sprintf("%.1f %%; %.1f %% of one", used, usedByAgent)})
	return nil
}

// createAll creates sandboxes, several at a time. What it returns exists even when it fails.
func (b *bench) createAll(ctx context.Context, n int) ([]string, error) {
	ids := make([]string, n)
	var all errgroup.Group
	all.SetLimit(b.atOnce)
	for i := range ids {
		all.Go(func() (err error) {
			ids[i], err = b.server.Create(ctx, api.CreateSandboxRequest{})
			return err
		})
	}
	err := all.Wait()
	return slices.DeleteFunc(ids, func(id string) bool { return id == "" }), err
}

func (b *bench) removeAll(ids []string) error {
	var all errgroup.Group
	all.SetLimit(b.atOnce)
	for _, id := range ids {
		all.Go(func() error { return b.server.Remove(context.Background(), id) })
	}
	return all.Wait()
}

// idle returns how much of one processor all sandboxes, and the server, use when nothing is
// asked of them, in percent.
func (b *bench) idle(ctx context.Context) (sandboxes, server float64, err error) {
	before, err := b.processorTimes()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	select {
	case <-time.After(idleFor):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	after, err := b.processorTimes()
	took := time.Since(began)
	return percent * float64(after.sandboxes-before.sandboxes) / float64(took), percent * float64(after.server-before.server) / float64(took), err
}

type processorTimes struct{ sandboxes, server time.Duration }

func (b *bench) processorTimes() (t processorTimes, err error) {
	if t.sandboxes, err = bare.ProcessorTime("/wrenn-" + b.server.Instance); err != nil {
		return t, err
	}
	t.server, err = b.server.ProcessorTime()
	return t, err
}
