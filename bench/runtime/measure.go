package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/network"
)

// Who does what is measured.
const (
	driver = iota
	bare
	both
)

// measured is all that is measured with one guest.
type measured struct {
	checkpoint, live, restore [both]times
	copies                    times
}

// copyRounds is how often copies are restored side by side.
const copyRounds = 5

// measure starts a guest that holds so much memory and takes turns with it.
func measure(ctx context.Context, o options, memoryMB int) (m measured, err error) {
	b, err := newBench(ctx, o)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.start(ctx, "source", b.slot, ""); err != nil {
		return m, err
	}
	if err := b.ready(ctx, b.slot); err != nil {
		return m, err
	}
	if memoryMB > 0 {
		if err := b.occupy(ctx, memoryMB); err != nil {
			return m, err
		}
	}
	for range o.rounds {
		for _, who := range []int{driver, bare} {
			if err := b.turn(ctx, &m, who); err != nil {
				return m, err
			}
		}
	}
	for range copyRounds {
		took, err := b.copies(ctx, o.copies)
		if err != nil {
			return m, err
		}
		m.copies = append(m.copies, took)
	}
	return m, nil
}

// turn writes the source down twice, and replaces it by what was written down.
func (b *bench) turn(ctx context.Context, m *measured, who int) error {
	dir, err := b.newDir()
	if err != nil {
		return err
	}
	began := time.Now()
	if who == driver {
		err = errors.Join(b.driver.Checkpoint(ctx, "source", dir), b.driver.Thaw(ctx, "source"))
	} else {
		err = b.runsc(ctx, "checkpoint", "--leave-running", "--image-path="+dir, "source")
	}
	m.live[who] = append(m.live[who], time.Since(began))
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		return err
	}
	if dir, err = b.newDir(); err != nil {
		return err
	}
	began = time.Now()
	if who == driver {
		err = b.driver.Checkpoint(ctx, "source", dir)
	} else {
		err = b.runsc(ctx, "checkpoint", "--image-path="+dir, "source")
	}
	m.checkpoint[who] = append(m.checkpoint[who], time.Since(began))
	if err != nil {
		return err
	}
	if err := b.end(ctx); err != nil {
		return err
	}
	began = time.Now()
	if who == driver {
		err = b.start(ctx, "source", b.slot, dir)
	} else {
		err = b.bareRestore(ctx, dir)
	}
	if err == nil {
		err = b.ready(ctx, b.slot)
	}
	m.restore[who] = append(m.restore[who], time.Since(began))
	return errors.Join(err, os.RemoveAll(dir))
}

// end ends the source and makes its slot ready for the next start.
func (b *bench) end(ctx context.Context) error {
	bundle := filepath.Join(b.runDir, "bundles", "source")
	if err := os.RemoveAll(b.bundleCopy); err != nil {
		return err
	}
	if err := os.CopyFS(b.bundleCopy, os.DirFS(bundle)); err != nil {
		return err
	}
	if err := b.driver.Destroy(ctx, "source"); err != nil {
		return err
	}
	return b.network.Configure(ctx, b.slot)
}

// bareRestore restores the source with runsc's own two commands, such that the driver
// finds it where it expects it.
func (b *bench) bareRestore(ctx context.Context, dir string) error {
	bundle := filepath.Join(b.runDir, "bundles", "source")
	if err := os.CopyFS(bundle, os.DirFS(b.bundleCopy)); err != nil {
		return err
	}
	pidFile := filepath.Join(bundle, "sentry.pid")
	if err := os.Remove(pidFile); err != nil {
		return err
	}
	if err := b.runsc(ctx, "create", "--bundle="+bundle, "--pid-file="+pidFile, "source"); err != nil {
		return err
	}
	return b.runsc(ctx, "restore", "--image-path="+dir, "--detach", "source")
}

// copies restores copies of the source side by side, in slots of their own, and returns
// how long it took until all answer.
func (b *bench) copies(ctx context.Context, n int) (took time.Duration, err error) {
	dir, err := b.newDir()
	if err != nil {
		return 0, err
	}
	if err := b.driver.Checkpoint(ctx, "source", dir); err != nil {
		return 0, err
	}
	if err := b.driver.Thaw(ctx, "source"); err != nil {
		return 0, err
	}
	slots := make([]network.Slot, n)
	for i := range slots {
		if slots[i], err = b.network.Acquire(ctx); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	var group errgroup.Group
	for i, slot := range slots {
		group.Go(func() error {
			if err := b.start(ctx, fmt.Sprintf("copy%02d", i), slot, dir); err != nil {
				return err
			}
			return b.ready(ctx, slot)
		})
	}
	err = group.Wait()
	took = time.Since(began)
	for i, slot := range slots {
		err = errors.Join(err, b.driver.Destroy(ctx, fmt.Sprintf("copy%02d", i)), b.network.Release(ctx, slot))
	}
	return took, errors.Join(err, os.RemoveAll(dir))
}

// occupy has the guest hold memory that it has written to.
func (b *bench) occupy(ctx context.Context, memoryMB int) error {
	guest := b.guest(b.slot)
	defer guest.Close()
	program := fmt.Sprintf("import os, time\nkept = os.urandom(%d << 20)\nprint('holds', flush=True)\ntime.sleep(1e6)", memoryMB)
	holds := errors.New("it holds")
	err := guest.Start(ctx, guestclient.Command{Cmd: "python3", Args: []string{"-c", program}, User: "root"}, func(e guestclient.Event) error {
		if _, printed := e.(guestclient.Output); printed {
			return holds
		}
		return nil
	})
	if errors.Is(err, holds) {
		return nil
	}
	return fmt.Errorf("hold memory: %w", err)
}
