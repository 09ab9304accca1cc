package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	warmTarget = 80 * time.Millisecond
	warmName   = "bench-warm"
	warmKept   = 2
	// warmRefill is how long the host gets to restore the next one ahead of demand: longer than
	// a restore takes on any machine that this is for.
	warmRefill = 2 * time.Second

	forksTarget = 1500 * time.Millisecond
	forkRounds  = 5
)

// warm measures creates from a snapshot of which sandboxes are kept ready.
func (b *bench) warm(ctx context.Context) (err error) {
	g, err := newGuest(ctx, b.server, 0)
	if err != nil {
		return err
	}
	err = b.server.Do(ctx, http.MethodPost, "/v1/snapshots", api.CreateSnapshotRequest{SandboxID: g.id, Name: warmName}, nil)
	if err := errors.Join(err, g.remove()); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, b.server.Do(context.WithoutCancel(ctx), http.MethodDelete, "/v1/snapshots/"+warmName, nil, nil))
	}()
	var ours report.Times
	for range b.rounds {
		select {
		case <-time.After(warmRefill):
		case <-ctx.Done():
			return ctx.Err()
		}
		began := time.Now()
		id, err := b.server.Create(ctx, api.CreateSandboxRequest{Template: warmName})
		if err != nil {
			return err
		}
		err = says(ctx, b.server, id)
		ours = append(ours, time.Since(began))
		if err := errors.Join(err, b.server.Remove(ctx, id)); err != nil {
			return err
		}
	}
	b.table.Add(report.Row{
		What: "create from a snapshot kept warm to first output, median", Ours: report.MS(ours.Median()),
		Target: report.MS(warmTarget), Met: ours.Median() <= warmTarget,
	})
	b.curves = append(b.curves, curve{"resume", "warm create", ours})
	return nil
}

// forks measures how long it takes to have copies of one sandbox that are all usable.
func (b *bench) forks(ctx context.Context) (err error) {
	g, err := newGuest(ctx, b.server, largeMiB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	c, err := b.newBare(ctx, "forked", largeMiB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Remove()) }()
	var ours, raw report.Times
	for range forkRounds {
		took, err := b.forkOurs(ctx, g)
		if err != nil {
			return err
		}
		ours = append(ours, took)
		if took, err = b.forkBare(ctx, c); err != nil {
			return fmt.Errorf("bare: %w", err)
		}
		raw = append(raw, took)
	}
	b.table.Add(report.Row{
		What: fmt.Sprintf("%d forks with %d MiB, all usable, median", b.copies, largeMiB), Ours: report.MS(ours.Median()), Raw: report.MS(raw.Median()),
		Ratio: report.Ratio(float64(ours.Median()), float64(raw.Median())), Target: report.MS(forksTarget), Met: ours.Median() <= forksTarget,
	})
	return nil
}

func (b *bench) forkOurs(ctx context.Context, g *guest) (took time.Duration, err error) {
	began := time.Now()
	var copies []api.Sandbox
	if err := g.post(ctx, "fork", api.ForkRequest{Count: b.copies}, &copies); err != nil {
		return 0, err
	}
	var all errgroup.Group
	for _, one := range copies {
		all.Go(func() error { return says(ctx, b.server, one.ID) })
	}
	err = all.Wait()
	took = time.Since(began)
	for _, one := range copies {
		err = errors.Join(err, b.server.Remove(context.WithoutCancel(ctx), one.ID))
	}
	if err == nil && len(copies) != b.copies {
		err = fmt.Errorf("there are %d forks", len(copies))
	}
	return took, err
}

func (b *bench) forkBare(ctx context.Context, c *bareGuest) (took time.Duration, err error) {
	copies := make([]*bareGuest, b.copies)
	defer func() {
		for _, one := range copies {
			if one != nil {
				err = errors.Join(err, one.Remove())
			}
		}
	}()
	for i := range copies {
		made, err := b.peer.Prepare(fmt.Sprintf("fork%02d-", i), bareArgs(largeMiB)...)
		if err != nil {
			return 0, err
		}
		copies[i] = &bareGuest{Container: made}
	}
	c.dir = filepath.Join(b.dir, "forked")
	began := time.Now()
	if _, err := c.save(ctx, true); err != nil {
		return 0, err
	}
	var all errgroup.Group
	for _, one := range copies {
		all.Go(func() error {
			_, err := one.restore(ctx, c.dir)
			return err
		})
	}
	err = all.Wait()
	return time.Since(began), err
}
