package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/bare"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	ratioTarget = 1.5 // of pauses and resumes, by the bare thing
	smallTarget = 200 * time.Millisecond
	largeTarget = 400 * time.Millisecond
	largeMiB    = 256
	// stopTarget is how much longer than with a bare checkpoint a sandbox may stand still.
	stopTarget = 20 * time.Millisecond
)

// rest is how long a sandbox stays paused: what it had is given back behind the answer to the
// pause, as the bare container is cleared before its restore is timed.
const rest = 200 * time.Millisecond

// figures are what is measured of one guest.
type figures struct {
	pause, resume, stop report.Times
	// safe is a pause that ends with all on the disk. Every one of Wrenn's does.
	safe report.Times
}

func (b *bench) small(ctx context.Context) error {
	return b.inTurns(ctx, "small guest", 0, smallTarget)
}

func (b *bench) touched(ctx context.Context) error {
	return b.inTurns(ctx, fmt.Sprintf("%d MiB touched", largeMiB), largeMiB, largeTarget)
}

// inTurns pauses, resumes and writes down a sandbox and a bare container like it again and
// again.
func (b *bench) inTurns(ctx context.Context, what string, mib int, resumeTarget time.Duration) (err error) {
	g, err := newGuest(ctx, b.server, mib)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	c, err := b.newBare(ctx, "single"+strconv.Itoa(mib), mib)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Remove()) }()
	var ours, raw figures
	for i := range b.rounds + 1 { // the first round warms the caches and is not counted
		var mine, theirs figures
		if err := g.round(ctx, &mine); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		if err := c.round(ctx, &theirs); err != nil {
			return fmt.Errorf("round %d, bare: %w", i, err)
		}
		if i > 0 {
			ours.add(mine)
			raw.add(theirs)
		}
	}
	b.addRatio(what+": pause, median", ours.pause, raw.pause, 0)
	b.table.Add(report.Row{
		What: what + ": pause, median, beside bare with its files synced", Ours: report.MS(ours.safe.Median()), Raw: report.MS(raw.safe.Median()),
		Ratio: report.Ratio(float64(ours.safe.Median()), float64(raw.safe.Median())),
	})
	b.addRatio(what+": resume to first output, median", ours.resume, raw.resume, resumeTarget)
	for _, tail := range report.Tails {
		b.table.Add(report.Row{
			What: fmt.Sprintf("%s: resume to first output, p%.0f", what, 100*tail), Ours: report.MS(ours.resume.Quantile(tail)), Raw: report.MS(raw.resume.Quantile(tail)),
			Ratio: report.Ratio(float64(ours.resume.Quantile(tail)), float64(raw.resume.Quantile(tail))),
		})
	}
	stood, bareStood := ours.stop.Median(), raw.stop.Median()
	b.table.Add(report.Row{
		What: what + ": stands still for a snapshot, median", Ours: report.MS(stood), Raw: report.MS(bareStood),
		Ratio: report.Ratio(float64(stood), float64(bareStood)), Target: "raw + " + report.MS(stopTarget), Met: stood <= bareStood+stopTarget,
	})
	b.curves = append(b.curves,
		curve{"pause", what, ours.pause}, curve{"pause", what + ", bare", raw.pause},
		curve{"resume", what, ours.resume}, curve{"resume", what + ", bare", raw.resume})
	return nil
}

func (f *figures) add(more figures) {
	f.pause = append(f.pause, more.pause...)
	f.safe = append(f.safe, more.safe...)
	f.resume = append(f.resume, more.resume...)
	f.stop = append(f.stop, more.stop...)
}

// addRatio adds a row whose target is a ratio and, unless it is 0, a time.
func (b *bench) addRatio(what string, ours, raw report.Times, target time.Duration) {
	quotient := float64(ours.Median()) / float64(raw.Median())
	row := report.Row{
		What: what, Ours: report.MS(ours.Median()), Raw: report.MS(raw.Median()), Ratio: fmt.Sprintf("%.2f", quotient),
		Target: fmt.Sprintf("ratio %.1f", ratioTarget), Met: quotient <= ratioTarget,
	}
	if target > 0 {
		row.Target = report.MS(target) + ", " + row.Target
		row.Met = row.Met && ours.Median() <= target
	}
	b.table.Add(row)
}

// round writes a sandbox down while it runs, pauses it and resumes it.
func (g *guest) round(ctx context.Context, f *figures) error {
	began := time.Now()
	var made api.Template
	err := g.server.Do(ctx, http.MethodPost, "/v1/snapshots", api.CreateSnapshotRequest{SandboxID: g.id}, &made)
	if err != nil {
		return err
	}
	stood, err := stopped(ctx, began, time.Now(), func() ([]gap, error) { return g.gaps(ctx) })
	if err != nil {
		return err
	}
	f.stop = append(f.stop, stood)
	if err := g.server.Do(ctx, http.MethodDelete, "/v1/snapshots/"+made.Name, nil, nil); err != nil {
		return err
	}
	took, err := g.pause(ctx)
	if err != nil {
		return err
	}
	f.pause, f.safe = append(f.pause, took), append(f.safe, took)
	select {
	case <-time.After(rest):
	case <-ctx.Done():
		return ctx.Err()
	}
	took, err = g.resume(ctx)
	f.resume = append(f.resume, took)
	return err
}

// shareDaemon lets bare containers have the guest daemon that every sandbox has.
func (b *bench) shareDaemon() error {
	program, err := os.ReadFile(filepath.Join(b.bin, daemon))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.peer.Shared(), daemon), program, 0o755)
}

const daemon = "envd"

// bareArgs start in a bare container what is in a sandbox with a watcher.
func bareArgs(mib int) []string {
	script := fmt.Sprintf(`%s/%s --forward-interface eth0 >/dev/null 2>&1 & exec python3 -c "$0" %d`, bare.SharedMount, daemon, mib)
	return []string{"/bin/sh", "-c", script, watcher}
}

// bareGuest is a bare container with a watcher in it.
type bareGuest struct {
	*bare.Container
	dir      string // for checkpoints
	watching *follower
}

func (b *bench) newBare(ctx context.Context, id string, mib int) (*bareGuest, error) {
	c, err := b.peer.Prepare(id, bareArgs(mib)...)
	if err != nil {
		return nil, err
	}
	g := &bareGuest{Container: c, dir: filepath.Join(b.dir, "checkpoint-"+id)}
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	g.watching = follow(c.Output())
	if err := g.watching.awaitFirst(ctx); err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	return g, nil
}

// save writes the container down and returns how long that took.
func (c *bareGuest) save(ctx context.Context, runOn bool) (time.Duration, error) {
	if err := errors.Join(os.RemoveAll(c.dir), os.Mkdir(c.dir, 0o700)); err != nil {
		return 0, err
	}
	began := time.Now()
	err := c.Checkpoint(ctx, c.dir, runOn)
	return time.Since(began), err
}

// sync waits until what was saved is on the disk and returns how long that took.
func (c *bareGuest) sync() (time.Duration, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	var all errgroup.Group
	for _, e := range entries {
		all.Go(func() error { return syncPath(filepath.Join(c.dir, e.Name())) })
	}
	err = errors.Join(all.Wait(), syncPath(c.dir))
	return time.Since(began), err
}

// syncPath waits until a file or a directory is on the disk.
func syncPath(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// round does to a container what is done to a sandbox.
func (c *bareGuest) round(ctx context.Context, f *figures) (err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	began := time.Now()
	if _, err := c.save(ctx, true); err != nil {
		return err
	}
	stood, err := stopped(ctx, began, time.Now(), c.watching.gaps)
	if err != nil {
		return err
	}
	f.stop = append(f.stop, stood)
	took, err := c.save(ctx, false)
	if err != nil {
		return err
	}
	f.pause = append(f.pause, took)
	synced, err := c.sync()
	if err != nil {
		return err
	}
	f.safe = append(f.safe, took+synced)
	if err := c.Clear(ctx); err != nil {
		return err
	}
	took, err = c.restore(ctx, c.dir)
	f.resume = append(f.resume, took)
	return err
}

// restore returns how long it took until the watcher printed.
func (c *bareGuest) restore(ctx context.Context, dir string) (time.Duration, error) {
	began := time.Now()
	if err := c.Restore(ctx, dir); err != nil {
		return 0, err
	}
	c.watching = follow(c.Output())
	err := c.watching.awaitFirst(ctx)
	return time.Since(began), err
}
