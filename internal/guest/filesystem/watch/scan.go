package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

// telling is what is told of the content that a directory has when watching it begins.
type telling uint8

const (
	nothing   telling = iota // it was there before
	creations                // it was moved here
	writes                   // it was made here: what is not empty has been written too
)

const (
	childMask = unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK |
		unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	// The parent of any other directory tells of its end.
	rootMask = childMask | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

// begin watches the root and what is below it, and tells nothing of what is there.
func (r *reader) begin() error {
	r.nodes = make(map[int32]*node)
	r.pending = make(map[uint32]pendingMove)
	r.missed = nil
	wd, err := r.in.add(r.path, rootMask)
	if err != nil {
		if limit := limitReached(err); limit != nil {
			return limit
		}
		return filesystem.Unreadable(&os.PathError{Op: "watch", Path: r.path, Err: err}, r.path)
	}
	r.root = &node{wd: wd}
	r.nodes[wd] = r.root
	if !r.opts.Recursive {
		return nil
	}
	return r.scan(r.root, nothing)
}

// enter watches the directory name in parent and what is below it, unless it is watched
// already. A directory that is gone by now is not an error, and neither is one that is
// not to be entered.
func (r *reader) enter(parent *node, name string, tell telling) error {
	if err := context.Cause(r.ctx); err != nil {
		return err
	}
	path := filepath.Join(parent.path(r.path), name)
	kind, err := kindOf(path)
	if err == nil {
		if kind == made || kind == network && !r.opts.NetworkMounts {
			return nil
		}
		var wd int32
		if wd, err = r.in.add(path, childMask|unix.IN_DONT_FOLLOW); err == nil {
			return r.entered(parent, name, wd, tell)
		}
	}
	if limit := limitReached(err); limit != nil {
		return limit
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		r.miss(parent, name, tell)
	}
	return nil
}

// entered puts a directory into the tree that is watched under wd.
func (r *reader) entered(parent *node, name string, wd int32, tell telling) error {
	if known := r.nodes[wd]; known != nil {
		// It is the place of a directory that has been seen elsewhere: it was moved, and
		// the news of that is still to come, or it is mounted twice. A mount of a directory
		// inside itself is left alone.
		if !parent.within(known) {
			known.attach(parent, name)
		}
		return nil
	}
	n := &node{wd: wd}
	if old := parent.children[name]; old != nil {
		r.drop(old)
	}
	n.attach(parent, name)
	r.nodes[wd] = n
	return r.scan(n, tell)
}

// scan enters the directories in n, and tells of what is in it.
func (r *reader) scan(n *node, tell telling) error {
	entries, err := os.ReadDir(n.path(r.path))
	if err != nil {
		if n.parent != nil && errors.Is(err, os.ErrNotExist) {
			// It may come again under another name, and must be new then.
			parent, name := n.parent, n.name
			r.drop(n)
			r.miss(parent, name, tell)
		}
		return nil
	}
	if tell != nothing {
		if n.seenUntil, err = r.in.horizon(); err != nil {
			return fmt.Errorf("inotify: %w", err)
		}
		n.seen = make(map[string]struct{}, len(entries))
	}
	for _, entry := range entries {
		if filesystem.IsTemporary(entry.Name()) {
			continue
		}
		if tell != nothing {
			n.seen[entry.Name()] = struct{}{}
			r.tell(n, entry.Name(), Create)
			if info, err := entry.Info(); err == nil && tell == writes && info.Mode().IsRegular() && info.Size() > 0 {
				r.tell(n, entry.Name(), Write)
			}
		}
		if entry.IsDir() {
			if err := r.enter(n, entry.Name(), tell); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop stops watching n and what is below it.
func (r *reader) drop(n *node) {
	n.detach()
	delete(r.nodes, n.wd)
	r.in.remove(n.wd)
	for _, child := range n.children {
		r.drop(child)
	}
}

// missedDir is a directory that was not where the kernel had said, because a directory
// above it has been renamed since: it is looked for again when that is known.
type missedDir struct {
	parent *node
	name   string
	tell   telling
	since  time.Time
}

// maxMissed bounds those that are kept, whose number a busy guest decides.
const maxMissed = 4096

func (r *reader) miss(parent *node, name string, tell telling) {
	if len(r.missed) < maxMissed {
		r.missed = append(r.missed, missedDir{parent, name, tell, time.Now()})
	}
}

// retry looks again for what was missed.
func (r *reader) retry() error {
	missed := r.missed
	r.missed = nil
	for _, m := range missed {
		if r.nodes[m.parent.wd] != m.parent {
			continue // its parent is gone, too
		}
		if err := r.enter(m.parent, m.name, m.tell); err != nil {
			return err
		}
	}
	return nil
}

// limitReached returns the error to end with if err says that the system has no room for
// another watch: a directory that is not watched would lose its events.
func limitReached(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM) {
		return fault.Wrap(err, fault.RateLimited,
			"there are more directories to watch than the sandbox's system permits (fs.inotify.max_user_watches); watch a smaller tree")
	}
	return nil
}
