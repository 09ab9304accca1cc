// Package watch tells what changes in a directory, and if wanted in all directories below
// it, as it happens. What it cannot tell, because more came than could be kept, it says
// that it could not: no event is lost in silence.
//
// It speaks inotify itself, since the usual wrapping of it does not watch what is made
// below, and hides which events belong to one rename. The package must not know who is
// told, nor how; paths come to it absolute and clean.
package watch

import (
	"context"
	"os"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

// Op is what happened to a path.
type Op uint8

// The operations. A rename is a Rename of the old name, and a Create of the new one if
// that is in a watched directory too. A file that is replaced by one upload shows a Write.
const (
	Create Op = iota + 1
	Write
	Remove
	Rename
	Chmod // a change of mode, owner, times or extended attributes
)

// Self is the name of the watched directory itself in an Event.
const Self = "."

// Event is one change.
type Event struct {
	// Name is the path relative to the watched directory.
	Name string
	Op   Op
}

// Options choose what is watched.
type Options struct {
	// Recursive watches all directories below, also those that are made or moved in later.
	// Links to directories are not followed, and the file systems that the kernel makes up
	// (/proc and the like) not entered.
	Recursive bool
	// NetworkMounts permits watching what is mounted from elsewhere. Changes that are not
	// made in this sandbox are not seen there.
	NetworkMounts bool
}

// Watch is a directory being watched, until Close. It ends by itself when the directory is
// removed or moved away. It is safe for concurrent use.
type Watch struct {
	queue  *queue
	in     *inotify
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing is read any more
}

// Open begins to watch the directory path: every change after it has returned is told. A
// link is followed. Ctx bounds the beginning only.
func Open(ctx context.Context, path string, opts Options) (*Watch, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, filesystem.Unreadable(err, path)
	}
	if !info.IsDir() {
		return nil, fault.New(fault.InvalidRequest, "path '%s' is not a directory; watch the one that it is in", path)
	}
	if kind, err := kindOf(path); err != nil {
		return nil, filesystem.Unreadable(err, path)
	} else if kind == network && !opts.NetworkMounts {
		return nil, fault.New(fault.InvalidRequest,
			"path '%s' is on a network file system, where changes from elsewhere are not seen; allow network mounts to watch it all the same", path)
	}
	in, err := openInotify()
	if err != nil {
		return nil, err
	}
	own, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, cancel)
	w := &Watch{queue: newQueue(), in: in, cancel: cancel, done: make(chan struct{})}
	r := &reader{ctx: own, in: in, queue: w.queue, path: path, opts: opts}
	err = r.begin()
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		in.close()
		return nil, err
	}
	go func() {
		defer close(w.done)
		r.run()
	}()
	return w, nil
}

// Next waits for events and returns all that there are, in their order. It returns none
// after idle without any. When events were lost it says so with an error once, without
// those that it had left; after that it goes on. When the watch has ended, every further
// call returns the reason.
func (w *Watch) Next(ctx context.Context, idle time.Duration) ([]Event, error) {
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		if events, err := w.queue.take(); err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-w.queue.ready:
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Drain is Next without waiting.
func (w *Watch) Drain() ([]Event, error) { return w.queue.take() }

// Close ends the watch and gives back what it holds.
func (w *Watch) Close() {
	w.cancel()
	w.in.close()
	<-w.done
}
