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
	// idleWindow is how long idle daemons are watched.
	idleWindow = 6 * time.Second
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
	return b.addIdle(ctx, "idle", idleMemoryTarget, idleCPUTarget)
}

// idleAgain measures the same after all that was asked of them.
func (b *bench) idleAgain(ctx context.Context) error {
	for _, d := range b.daemons() {
		d.client.CloseIdleConnections()
	}
	return b.addIdle(ctx, "idle after all of the above", 0, 0)
}

func (b *bench) addIdle(ctx context.Context, when string, memoryTarget, cpuTarget float64) error {
	before, err := each(b, (*daemon).cpu)
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(idleWindow):
	case <-ctx.Done():
		return ctx.Err()
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
	memory, err := each(b, func(d *daemon) (float64, error) { return d.memory("VmRSS") })
	if err != nil {
		return err
	}
	b.addSmaller(when+": resident memory, MiB", "%.1f", memory, memoryTarget)
	b.addSmaller(when+": CPU, % of one", "%.3f", shares, cpuTarget)
	return nil
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
