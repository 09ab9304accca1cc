package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	idleMemoryTarget = 12.0 // MiB
	idleCPUTarget    = 0.5  // percent of one CPU
	binaryTarget     = 15.0 // MB
	// calmDown is how long daemons are left alone before they count as idle: they look
	// around more often for a while after something has changed.
	calmDown = 12 * time.Second
	// idleWindow is how long idle daemons are watched.
	idleWindow = 8 * time.Second
)

// idle measures what the daemons cost while nothing is asked of them, after the host has
// told them who they are, as it does in every sandbox.
func (b *bench) idle(ctx context.Context) error {
	for _, d := range b.daemons() {
		if err := d.introduce(ctx); err != nil {
			return err
		}
	}
	sizes, err := each(b, func(d *daemon) (float64, error) {
		info, err := os.Stat(d.binary)
		if err != nil {
			return 0, err
		}
		return float64(info.Size()) / 1e6, nil
	})
	if err != nil {
		return err
	}
	b.addSmaller("size of the binary, MB", "%.1f", sizes, binaryTarget)
	if err := wait(ctx, calmDown); err != nil {
		return err
	}
	if err := b.addIdleCPU(ctx); err != nil {
		return err
	}
	return b.addMemory("idle: resident memory, MiB", idleMemoryTarget)
}

// idleAgain measures the memory after all that was asked of the daemons.
func (b *bench) idleAgain(ctx context.Context) error {
	for _, d := range b.daemons() {
		d.client.CloseIdleConnections()
	}
	if err := wait(ctx, calmDown); err != nil {
		return err
	}
	return b.addMemory("idle after all of the above: resident memory, MiB", 0)
}

func (b *bench) addIdleCPU(ctx context.Context) error {
	before, err := each(b, (*daemon).cpu)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := wait(ctx, idleWindow); err != nil {
		return err
	}
	after, err := each(b, (*daemon).cpu)
	if err != nil {
		return err
	}
	window := time.Since(began)
	shares := make([]float64, len(after))
	for i := range after {
		const percent = 100
		shares[i] = percent * float64(after[i]-before[i]) / float64(window)
	}
	b.addSmaller("idle: CPU, % of one", "%.3f", shares, idleCPUTarget)
	return nil
}

func (b *bench) addMemory(what string, target float64) error {
	memory, err := each(b, func(d *daemon) (float64, error) { return d.memory("VmRSS") })
	if err != nil {
		return err
	}
	b.addSmaller(what, "%.1f", memory, target)
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// introduce tells a daemon its default user. The peer is left with its defaults, because
// its init may change the machine.
func (d *daemon) introduce(ctx context.Context) error {
	if strings.HasSuffix(d.address, peerPort) {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url("/init"), strings.NewReader(`{"defaultUser":"root"}`))
	if err != nil {
		return err
	}
	response, err := d.client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		return fmt.Errorf("init: %s", response.Status)
	}
	return nil
}

// each asks all daemons the same.
func each[T any](b *bench, ask func(*daemon) (T, error)) ([]T, error) {
	var all []T
	for _, d := range b.daemons() {
		value, err := ask(d)
		if err != nil {
			return nil, err
		}
		all = append(all, value)
	}
	return all, nil
}
