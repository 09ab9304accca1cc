package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/bare"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	startTarget      = 250 * time.Millisecond
	startRatioTarget = 1.6
	execTarget       = 15 * time.Millisecond
	memoryTarget     = 30 // MiB for an idle sandbox
	mib              = 1 << 20
)

// forever keeps a bare container up after its first output.
var forever = []string{"/bin/sh", "-c", "echo up; exec sleep 1000000"}

// starts measures from the request to create a sandbox to the first output of a command
// in it.
func (b *bench) starts(ctx context.Context) error {
	var ours, raw report.Times
	for i := range b.options.starts + 1 { // the first pair warms the caches and is not counted
		mine, err := b.startOurs(ctx)
		if err != nil {
			return err
		}
		theirs, err := b.startRaw(ctx, fmt.Sprintf("start-%03d-", i))
		if err != nil {
			return err
		}
		if i > 0 {
			ours, raw = append(ours, mine), append(raw, theirs)
		}
	}
	quotient := float64(ours.Median()) / float64(raw.Median())
	b.table.Add(report.Row{
		What: "create to first output, median", Ours: report.MS(ours.Median()),
		Raw: report.MS(raw.Median()), Ratio: fmt.Sprintf("%.2f", quotient),
		Target: fmt.Sprintf("%s, ratio %.1f", report.MS(startTarget), startRatioTarget), Met: ours.Median() <= startTarget && quotient <= startRatioTarget,
	})
	for _, tail := range report.Tails {
		b.table.Add(report.Row{
			What: fmt.Sprintf("create to first output, p%.0f", 100*tail), Ours: report.MS(ours.Quantile(tail)), Raw: report.MS(raw.Quantile(tail)),
			Ratio: report.Ratio(float64(ours.Quantile(tail)), float64(raw.Quantile(tail))),
		})
	}
	return nil
}

func (b *bench) startOurs(ctx context.Context) (took time.Duration, err error) {
	began := time.Now()
	id, err := b.server.Create(ctx, api.CreateSandboxRequest{})
	if err != nil {
		return 0, err
	}
	out, err := b.server.Exec(ctx, id, "/bin/echo", "up")
	took = time.Since(began)
	if err == nil && out != "up\n" {
		err = fmt.Errorf("echo said %q", out)
	}
	return took, first(err, b.server.Remove(ctx, id))
}

func (b *bench) startRaw(ctx context.Context, id string) (took time.Duration, err error) {
	c, err := b.peer.Prepare(id, "/bin/echo", "up")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = c.Start(ctx)
	took = time.Since(began)
	return took, first(err, c.Remove())
}

// commands measures the round trip of a command that does nothing.
func (b *bench) commands(ctx context.Context) (err error) {
	id, err := b.server.Create(ctx, api.CreateSandboxRequest{})
	if err != nil {
		return err
	}
	defer func() { err = first(err, b.server.Remove(context.WithoutCancel(ctx), id)) }()
	c, err := b.peer.Prepare("commands", forever...)
	if err != nil {
		return err
	}
	defer func() { err = first(err, c.Remove()) }()
	if err := c.Start(ctx); err != nil {
		return err
	}
	var ours, raw report.Times
	const warm = 5
	for i := range b.execs + warm {
		began := time.Now()
		if _, err := b.server.Exec(ctx, id, "/bin/true"); err != nil {
			return err
		}
		mine := time.Since(began)
		began = time.Now()
		if err := b.peer.Call(ctx, "exec", c.ID, "/bin/true"); err != nil {
			return err
		}
		if i >= warm {
			ours, raw = append(ours, mine), append(raw, time.Since(began))
		}
	}
	b.table.Add(report.Row{
		What: "exec /bin/true, median", Ours: report.MS(ours.Median()),
		Raw: report.MS(raw.Median()), Ratio: report.Ratio(float64(ours.Median()), float64(raw.Median())),
		Target: report.MS(execTarget), Met: ours.Median() <= execTarget,
	})
	for _, tail := range report.Tails {
		b.table.Add(report.Row{
			What: fmt.Sprintf("exec /bin/true, p%.0f", 100*tail), Ours: report.MS(ours.Quantile(tail)), Raw: report.MS(raw.Quantile(tail)),
			Ratio: report.Ratio(float64(ours.Quantile(tail)), float64(raw.Quantile(tail))),
		})
	}
	return nil
}

// many measures how long a crowd takes to come up, and what each of it then holds.
func (b *bench) many(ctx context.Context) error {
	ours, ourMemory, failed, err := b.crowdOfOurs(ctx)
	if err != nil {
		return err
	}
	raw, rawMemory, err := b.crowdOfRaw(ctx)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d sandboxes, %d at a time", b.crowd, b.atOnce)
	b.table.Add(report.Row{
		What: what, Ours: fmt.Sprintf("%.1f s, %d failed", ours.Seconds(), failed),
		Raw: fmt.Sprintf("%.1f s", raw.Seconds()), Ratio: report.Ratio(float64(ours), float64(raw)),
		Target: "0 failed", Met: failed == 0,
	})
	b.table.Add(report.Row{
		What: "memory of an idle sandbox, median", Ours: fmt.Sprintf("%.1f MiB", ourMemory),
		Raw: fmt.Sprintf("%.1f MiB", rawMemory), Ratio: report.Ratio(ourMemory, rawMemory),
		Target: fmt.Sprintf("%d MiB", memoryTarget), Met: ourMemory <= memoryTarget,
	})
	return nil
}

func (b *bench) crowdOfOurs(ctx context.Context) (took time.Duration, memory float64, failed int, err error) {
	ids := make([]string, b.crowd)
	var group errgroup.Group
	group.SetLimit(b.atOnce)
	began := time.Now()
	var firstFailure error
	failures := make([]error, b.crowd)
	for i := range ids {
		group.Go(func() error {
			ids[i], failures[i] = b.server.Create(ctx, api.CreateSandboxRequest{})
			return nil
		})
	}
	err = group.Wait()
	took = time.Since(began)
	var each []float64
	for i, id := range ids {
		if failures[i] != nil {
			failed++
			firstFailure = first(firstFailure, failures[i])
			continue
		}
		inUse, memoryErr := bare.MemoryInUse("/wrenn-"+b.server.Instance, id)
		err = first(err, memoryErr)
		each = append(each, float64(inUse)/mib)
	}
	if firstFailure != nil {
		fmt.Println("a create failed:", firstFailure)
	}
	for _, id := range ids {
		if id != "" {
			err = first(err, b.server.Remove(context.WithoutCancel(ctx), id))
		}
	}
	return took, middle(each), failed, err
}

func (b *bench) crowdOfRaw(ctx context.Context) (took time.Duration, memory float64, err error) {
	all := make([]*bare.Container, b.crowd)
	defer func() {
		for _, c := range all {
			if c != nil {
				err = first(err, c.Remove())
			}
		}
	}()
	for i := range all {
		if all[i], err = b.peer.Prepare(fmt.Sprintf("crowd-%03d-", i), forever...); err != nil {
			return 0, 0, err
		}
	}
	var group errgroup.Group
	group.SetLimit(b.atOnce)
	began := time.Now()
	for _, c := range all {
		group.Go(func() error { return c.Start(ctx) })
	}
	err = group.Wait()
	took = time.Since(began)
	if err != nil {
		return took, 0, err
	}
	var each []float64
	for _, c := range all {
		inUse, err := bare.MemoryInUse(bare.Cgroup, c.ID)
		if err != nil {
			return took, 0, err
		}
		each = append(each, float64(inUse)/mib)
	}
	return took, middle(each), nil
}

// middle is the median of values.
func middle(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// guestMemory is what the guest daemon of a sandbox holds, in MiB.
func (b *bench) guestMemory(ctx context.Context, id string) (float64, error) {
	out, err := b.server.Exec(ctx, id, "awk", "/^VmRSS/ {print $2}", "/proc/1/status")
	if err != nil {
		return 0, err
	}
	var kib float64
	_, err = fmt.Sscan(strings.TrimSpace(out), &kib)
	return kib / 1024, err
}
