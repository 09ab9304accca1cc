package watch

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

// reader turns what the kernel tells into events. It is for one goroutine.
type reader struct {
	ctx   context.Context // ends when the watch is closed
	in    *inotify
	queue *queue
	path  string // of the root
	opts  Options

	root    *node
	nodes   map[int32]*node // by watch descriptor
	pending map[uint32]pendingMove
	missed  []missedDir
}

// pendingMove is the first half of a rename, waiting for its second half, which has the
// same cookie. It never comes when the new name is not in a watched directory.
type pendingMove struct {
	dir   *node                // what was renamed, if it is a directory
	write filesystem.Temporary // what was renamed, if it is a file being written
	since time.Time
}

// settleTime is how long after the first half of a rename the second is waited for. The
// kernel queues both at nearly the same moment.
const settleTime = 50 * time.Millisecond

// missTime is how long a directory that was not found is remembered.
const missTime = 2 * time.Second

// run reads until the watch ends or is closed.
func (r *reader) run() {
	for {
		fresh := !r.in.buffered()
		ev, err := r.in.next()
		if fresh && err == nil {
			r.settle(time.Now())
		}
		if err == nil {
			err = r.handle(ev)
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrClosed), r.ctx.Err() != nil:
			r.queue.finish(fault.New(fault.Canceled, "the watch was closed"))
			return
		default:
			r.queue.finish(err)
			return
		}
	}
}

// settle gives up what has waited long enough: a directory whose second name did not come
// is not below the root any more.
func (r *reader) settle(now time.Time) {
	for cookie, move := range r.pending {
		if now.Sub(move.since) < settleTime {
			continue
		}
		delete(r.pending, cookie)
		if move.dir != nil && r.nodes[move.dir.wd] == move.dir {
			r.drop(move.dir)
		}
	}
	kept := r.missed[:0]
	for _, m := range r.missed {
		if now.Sub(m.since) < missTime {
			kept = append(kept, m)
		}
	}
	r.missed = kept
}

func (r *reader) tell(n *node, name string, op Op) { r.queue.put(Event{Name: n.rel(name), Op: op}) }

// handle tells what one event of the kernel means. An error ends the watch.
func (r *reader) handle(ev rawEvent) error {
	if ev.is(unix.IN_Q_OVERFLOW) {
		return r.overflowed()
	}
	n := r.nodes[ev.wd]
	switch {
	case n == nil: // not watched any more
		return nil
	case n == r.root && ev.name == "":
		return r.handleRoot(ev)
	case ev.is(unix.IN_IGNORED | unix.IN_UNMOUNT):
		n.detach()
		delete(r.nodes, ev.wd)
		return nil
	case ev.name == "": // the directory above tells the same with a name
		return nil
	}
	if kind := filesystem.TemporaryKind(ev.name); kind != filesystem.NotTemporary {
		if ev.is(unix.IN_MOVED_FROM) {
			r.pending[ev.cookie] = pendingMove{write: kind, since: time.Now()}
		}
		return nil
	}
	switch {
	case ev.is(unix.IN_CREATE):
		return r.appeared(n, ev, writes)
	case ev.is(unix.IN_MOVED_TO):
		return r.arrived(n, ev)
	case ev.is(unix.IN_MODIFY):
		r.tell(n, ev.name, Write)
	case ev.is(unix.IN_ATTRIB):
		r.tell(n, ev.name, Chmod)
	case ev.is(unix.IN_MOVED_FROM):
		delete(n.seen, ev.name)
		r.tell(n, ev.name, Rename)
		if dir := n.children[ev.name]; dir != nil && ev.is(unix.IN_ISDIR) {
			r.pending[ev.cookie] = pendingMove{dir: dir, since: time.Now()}
		}
	case ev.is(unix.IN_DELETE):
		delete(n.seen, ev.name)
		r.tell(n, ev.name, Remove)
		if dir := n.children[ev.name]; dir != nil {
			dir.detach()
		}
	}
	return nil
}

// handleRoot tells what happened to the watched directory itself.
func (r *reader) handleRoot(ev rawEvent) error {
	switch {
	case ev.is(unix.IN_ATTRIB):
		r.tell(r.root, Self, Chmod)
		return nil
	case ev.is(unix.IN_MOVE_SELF):
		r.tell(r.root, Self, Rename)
		return fault.New(fault.NotFound, "the watched directory '%s' was moved away; watch it at its new place", r.path)
	case ev.is(unix.IN_DELETE_SELF | unix.IN_IGNORED | unix.IN_UNMOUNT):
		r.tell(r.root, Self, Remove)
		return fault.New(fault.NotFound, "the watched directory '%s' was removed; watch it again when there is one", r.path)
	}
	return nil
}

// appeared tells of a new name, and watches what it names if it is a directory.
func (r *reader) appeared(n *node, ev rawEvent, content telling) error {
	if !n.told(ev.name, ev.position) {
		r.tell(n, ev.name, Create)
	}
	if !r.opts.Recursive || !ev.is(unix.IN_ISDIR) {
		return nil
	}
	return r.enter(n, ev.name, content)
}

// arrived tells of the second half of a rename.
func (r *reader) arrived(n *node, ev rawEvent) error {
	move := r.pending[ev.cookie]
	delete(r.pending, ev.cookie)
	switch {
	case move.write != filesystem.NotTemporary:
		// A file was written whole. Seen from here it was written in place.
		if told := n.told(ev.name, ev.position); !told && move.write == filesystem.NewFile {
			r.tell(n, ev.name, Create)
		}
		r.tell(n, ev.name, Write)
		return nil
	case move.dir == nil || r.nodes[move.dir.wd] != move.dir || n.within(move.dir):
		return r.appeared(n, ev, creations)
	}
	if !n.told(ev.name, ev.position) {
		r.tell(n, ev.name, Create)
	}
	if old := n.children[ev.name]; old != nil && old != move.dir {
		r.drop(old)
	}
	move.dir.attach(n, ev.name)
	return r.retry()
}

// overflowed begins anew after the kernel has dropped events, among which may have been
// those of new directories. Events that are still queued belong to watches that are gone.
func (r *reader) overflowed() error {
	for wd := range r.nodes {
		r.in.remove(wd)
	}
	err := r.begin()
	r.queue.lose()
	return err
}
