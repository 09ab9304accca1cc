package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

const (
	configFile = "config.json"

	// stateMode keeps what a guest had in memory from other users.
	stateMode = 0o600

	// controlTime bounds a call that does little. A guest that stops its tasks and a sentry
	// that is busy take milliseconds.
	controlTime = 30 * time.Second
	// answerTime bounds one that does nothing.
	answerTime = 10 * time.Second
	// saveTime bounds the writing of a checkpoint, which is as long as the disk takes.
	saveTime = 15 * time.Minute

	// saveReserve is what must be left on the disk beside a checkpoint, in bytes. Guests
	// write to that disk too, through mappings: a sentry that finds it full dies.
	saveReserve = 256 * mib
)

// stateFiles are the files that the sentry writes and reads, in the order in which it
// wants them: its own state, what the pages are, and the pages.
var stateFiles = []string{"checkpoint.img", "pages_meta.img", "pages.img"}

var _ runtime.Checkpointer = (*Driver)(nil)

// Answers asks the sentry for nothing.
func (d *Driver) Answers(_ context.Context, id string) error {
	c, err := d.dial(id)
	if err != nil {
		return err
	}
	defer c.close()
	return c.call(callNothing, map[string]any{}, nil, nil, answerTime)
}

// Checkpoint writes a sandbox down and leaves it frozen.
//
// The sentry has a checkpoint that ends the sandbox, but that one kills it also when
// saving fails. So the guest is frozen first, written down with the kind of checkpoint that
// goes on, and stays frozen since freezes are counted.
func (d *Driver) Checkpoint(ctx context.Context, id, dir string) error {
	if err := d.haveRoom(ctx, id, dir); err != nil {
		return err
	}
	if err := d.describe(id, dir); err != nil {
		return fmt.Errorf("checkpoint %s: %w", id, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("checkpoint %s: %w", id, err)
	}
	err := d.save(id, dir)
	if err == nil && ctx.Err() == nil {
		return nil
	}
	if err == nil {
		err = ctx.Err()
	}
	if fault.Is(err, fault.NotFound) && d.cgroups.outOfMemory(id) {
		err = fault.Wrap(err, fault.AgentError, "the sandbox ran out of memory while it was written down, and has ended; "+
			"the host had too little for what many files or connections need of it")
	} else if noRoom(dir) {
		err = fault.Wrap(err, fault.NoSpace, "the host's disk is full; make room on it and try again")
	} else if what, ok := unsaveable(err); ok {
		err = fault.Wrap(err, fault.InvalidState, "something in the sandbox cannot be written down; end what uses it and try again: %s", what)
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
	defer cancel()
	if thawErr := d.Thaw(clean, id); thawErr != nil {
		err = errors.Join(err, fmt.Errorf("let it run on: %w", thawErr))
	}
	return fmt.Errorf("checkpoint %s: %w", id, err)
}

// describe puts into a checkpoint's directory what a restore must know besides the state:
// what the sandbox was made of, and by which program.
func (d *Driver) describe(id, dir string) error {
	for _, name := range []string{configFile, originFile} {
		text, err := os.ReadFile(filepath.Join(d.bundle(id), name))
		if err != nil {
			return fault.Wrap(err, fault.NotFound, "sandbox %s does not run", id)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, stateMode); err != nil {
			return err
		}
	}
	return nil
}

// haveRoom refuses a checkpoint that would fill the disk, before the guest notices it.
func (d *Driver) haveRoom(ctx context.Context, id, dir string) error {
	used, err := d.Usage(ctx, id)
	if err != nil {
		return err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return fmt.Errorf("look for room in %s: %w", dir, err)
	}
	free, needed := disk.Bavail*uint64(disk.Bsize), used.MemoryBytes+used.DiskBytes+saveReserve
	if free < needed {
		return fault.New(fault.NoSpace, "the host's disk has %d MiB left, and saving this sandbox may need %d; delete snapshots or make room on it", free/mib, needed/mib)
	}
	return nil
}

// save freezes a sandbox and writes it down. When it fails, the sandbox may be frozen.
func (d *Driver) save(id, dir string) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // the sentry has written them, through descriptors of its own
		}
	}()
	for _, name := range stateFiles {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, stateMode)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	c, err := d.dial(id)
	if err != nil {
		return err
	}
	defer c.close()
	if err := os.WriteFile(d.freezeMark(id), nil, stateMode); err != nil {
		return err
	}
	if err := c.call(callPause, nil, nil, nil, controlTime); err != nil {
		return err
	}
	if err := d.memory.lift(id); err != nil {
		return err
	}
	options := map[string]any{
		"Resume":          true,
		"have_pages_file": true,
		"metadata":        map[string]string{"compression": "none"},
	}
	return c.call(callCheckpoint, options, nil, files, saveTime)
}

// maxUnsaveable bounds what is told of a guest's state that cannot be saved, in bytes.
const maxUnsaveable = 200

// unsaveable says what a checkpoint has failed for when that is something of the guest which
// gVisor has no way to save, such as a tun device. The sentry tells it as text: this, the
// cause, and the stack of whoever found it.
func unsaveable(err error) (string, bool) {
	var said sentryError
	if !errors.As(err, &said) {
		return "", false
	}
	what, ok := strings.CutPrefix(string(said), "encoding error: ")
	if !ok {
		return "", false
	}
	what, _, _ = strings.Cut(what, "\n")
	what = strings.TrimRight(what, ":. ")
	return what[:min(len(what), maxUnsaveable)], true
}

// noRoom reports whether a directory's disk is full, by trying: the sentry tells its
// errors as text.
func noRoom(dir string) bool {
	const probe = 1 * mib
	f, err := os.CreateTemp(dir, "probe-")
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, probe)
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

const (
	// thawPoll is how often Thaw looks whether a checkpoint has ended that somebody else began.
	thawPoll = 5 * time.Millisecond
	// thawSettle is how long Thaw waits to see tasks go on that may. A guest whose own root
	// has stopped all of them (SIGSTOP) looks frozen for ever.
	thawSettle = time.Second
)

// freezeMark is a file that is there from before a sandbox is frozen until it has been
// thawed, for whoever comes after a process that died in between.
func (d *Driver) freezeMark(id string) string { return filepath.Join(d.bundle(id), freezeFile) }

const freezeFile = "freeze"

// Thaw lets a frozen sandbox go on. The mark only says that it may be frozen: the process
// that left it may have died one call before or after. Whether it is, is read off the
// sentry, since to end a freeze that is none crashes it.
func (d *Driver) Thaw(ctx context.Context, id string) error {
	c, err := d.dial(id)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := os.Stat(d.freezeMark(id)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := thaw(ctx, c); err != nil {
		return fmt.Errorf("thaw %s: %w", id, err)
	}
	if err := os.Remove(d.freezeMark(id)); err != nil {
		return err
	}
	d.memory.lower(id)
	return nil
}

// thaw waits until the sentry is at no checkpoint, and ends a freeze.
func thaw(ctx context.Context, c *control) error {
	tick := time.NewTicker(thawPoll)
	defer tick.Stop()
	var resumed time.Time // zero: not yet
	for {
		var stacks string
		if err := c.call(callStacks, nil, &stacks, nil, controlTime); err != nil {
			return err
		}
		switch freezeOf(stacks) {
		case running:
			return nil
		case frozen:
			// Once only: tasks that may go on still look held until they do.
			if resumed.IsZero() {
				if err := c.call(callResume, nil, nil, nil, controlTime); err != nil {
					return err
				}
				resumed = time.Now()
				continue
			}
			if time.Since(resumed) > thawSettle {
				return nil
			}
		case changing:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// freeze says whether a sentry runs its guest.
type freeze int

const (
	running freeze = iota
	frozen
	// changing is in the middle of a freeze or of a checkpoint.
	changing
)

// freezeOf reads it off the stacks of a sentry's goroutines. In a frozen one every task of
// the guest waits in the one place where the sentry holds tasks up.
func freezeOf(stacks string) freeze {
	const kernel = "gvisor.dev/gvisor/pkg/sentry/kernel."
	tasks, held := 0, 0
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		if strings.Contains(stack, kernel+"(*Kernel).Pause(") || strings.Contains(stack, kernel+"(*Kernel).SaveTo(") {
			return changing
		}
		if strings.Contains(stack, kernel+"(*Task).run(") {
			tasks++
			if strings.Contains(stack, kernel+"(*Task).doStop(") {
				held++
			}
		}
	}
	if tasks > 0 && tasks == held {
		return frozen
	}
	return running
}
