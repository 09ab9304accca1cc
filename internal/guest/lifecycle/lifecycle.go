// Package lifecycle brings the daemon to rest before the sandbox is frozen, and back to
// work after; and it measures what the sandbox uses.
//
// Nothing here is needed for a freeze to be safe: the daemon survives one at any
// instruction. It makes snapshots small and restores clean: no connection that only one
// side believes in, no memory that nobody uses, no file that is only half on its disk. The
// package must not know what asks for it, nor what a snapshot is.
package lifecycle

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// PortSubsystem is what forwards ports while the sandbox is awake.
type PortSubsystem interface {
	// Restart begins anew, whether it ran or not. It goes on until ctx ends.
	Restart(ctx context.Context) error
	// Stop returns when nothing of it is left. It may be called again.
	Stop()
}

// Config configures a Lifecycle.
type Config struct {
	Ports PortSubsystem
	// KeepAlives says whether connections may be used for another request after their
	// first. Turning it off ends those that are idle.
	KeepAlives func(on bool)
	// Revive sets connections going again that a restore left waiting; nil for none.
	Revive func()
	// Sync writes everything to the file systems' disks and returns when it is there. It
	// is nil on a machine whose disks are not the sandbox's.
	Sync   func()
	Logger *slog.Logger
}

// syncWait bounds how long file systems may take to be written.
const syncWait = 30 * time.Second

// Lifecycle is the daemon between waking and resting. It is safe for concurrent use.
type Lifecycle struct {
	cfg      Config
	syncWait time.Duration
	// turn holds a token while nobody changes between the two.
	turn chan struct{}
	// syncing holds a token while no Sync is under way. One that hangs is not followed by
	// others that would hang as well.
	syncing chan struct{}

	mu      sync.Mutex
	resting *resting // the preparation under way, if any

	closing sync.Once
}

// resting is one preparation, which all who ask for it meanwhile share.
type resting struct {
	done chan struct{}
	err  error // valid once done
}

// New returns a Lifecycle that is neither resting nor awake: its ports stand still until
// the first Wake.
func New(cfg Config) *Lifecycle {
	l := &Lifecycle{cfg: cfg, syncWait: syncWait, turn: make(chan struct{}, 1), syncing: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	l.syncing <- struct{}{}
	return l
}

// Prepare brings the daemon to rest, and returns when it is: ports are no longer
// forwarded, idle connections are closed and others will close after their answer, much
// unused memory is the system's again and files are on their disks. Whoever asks while that is
// under way waits for the same; asking again does it again, for what has gathered since.
// What was begun is brought to its end even when ctx ends.
func (l *Lifecycle) Prepare(ctx context.Context) error {
	r := l.join(context.WithoutCancel(ctx))
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// join returns the preparation under way, or begins one.
func (l *Lifecycle) join(ctx context.Context) *resting {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resting != nil {
		return l.resting
	}
	r := &resting{done: make(chan struct{})}
	l.resting = r
	go func() {
		<-l.turn
		r.err = l.rest(ctx)
		l.mu.Lock()
		l.resting = nil
		l.mu.Unlock()
		l.turn <- struct{}{}
		close(r.done)
	}()
	return r
}

func (l *Lifecycle) rest(ctx context.Context) error {
	l.cfg.Ports.Stop()
	l.cfg.KeepAlives(false)
	releaseMuch()
	return l.sync(ctx)
}

// Tidy is what of Prepare a sandbox can do that goes on as if nothing had been: much unused
// memory is the system's again and files are on their disks.
func (l *Lifecycle) Tidy(ctx context.Context) error {
	releaseMuch()
	return l.sync(ctx)
}

// sync is bounded, since nothing can interrupt the kernel in it. When time is up it goes
// on without us, and the next one waits for it.
func (l *Lifecycle) sync(ctx context.Context) error {
	if l.cfg.Sync == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.syncWait)
	defer cancel()
	late := fault.New(fault.DeadlineExceeded,
		"the sandbox's files could not be written to their disk within %v; try again when its disk is less busy", l.syncWait)
	select {
	case <-l.syncing:
	case <-ctx.Done():
		return late
	}
	done := make(chan struct{})
	go func() {
		l.cfg.Sync()
		l.syncing <- struct{}{}
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return late
	}
}

// Wake undoes Prepare: connections may be kept again, and the ports start anew, on the
// addresses that the sandbox has now. A preparation under way is finished first. The
// daemon need not be resting. What it starts goes on until Prepare or Close.
func (l *Lifecycle) Wake(ctx context.Context) error {
	select {
	case <-l.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { l.turn <- struct{}{} }()
	if l.cfg.Revive != nil {
		l.cfg.Revive()
	}
	l.cfg.KeepAlives(true)
	return l.cfg.Ports.Restart(context.WithoutCancel(ctx))
}

// Close stops the ports for good. Closing again does nothing.
func (l *Lifecycle) Close() {
	l.closing.Do(func() {
		<-l.turn // never given back: whoever comes later waits until its own context ends
		l.cfg.Ports.Stop()
	})
}
