package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// operation is something under way that may take a while and may fail in the middle: what
// it took so far and how that is given back.
type operation struct {
	s *Service
	// name begins the names of its fault points.
	name string
	undo []func(context.Context) error
	// took is how long each phase was, for the log.
	took []any
}

// phase is a named step of an operation of type T. It registers the undo of what it takes
// at once, before it can fail half-way.
type phase[T any] struct {
	key  string // in the log, and in the name of the fault point behind it
	name string // for people, as in "pause sandbox: NAME: what went wrong"
	run  func(T, context.Context) error
}

// undoTimeout bounds what is given back after a failure.
const undoTimeout = 30 * time.Second

// carryOut runs the phases of an operation in their order until one fails. When ctx was
// ended with a reason, that is the error.
func carryOut[T any](ctx context.Context, op *operation, of T, phases []phase[T]) error {
	for _, p := range phases {
		began := time.Now()
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := p.run(of, ctx); err != nil {
			if ctx.Err() != nil {
				cause := context.Cause(ctx)
				if errors.Is(cause, context.DeadlineExceeded) {
					cause = late(err, p.name)
				}
				err = fault.Wrap(err, fault.CodeOf(cause), "%s", fault.MessageOf(cause))
			}
			if noProcess(err) {
				err = fault.Wrap(err, fault.HostUnavailable, "too many processes run on the host; it cannot start another. Delete or pause sandboxes")
			}
			return fmt.Errorf("%s: %w", p.name, err)
		}
		op.took = append(op.took, slog.Duration(p.key, time.Since(began).Round(100*time.Microsecond)))
		op.at(p.key)
	}
	return nil
}

// late is what people are told of a phase that could not be ended in time.
func late(err error, name string) error {
	if errors.Is(err, errDeaf) {
		return errDeaf
	}
	return fault.New(fault.DeadlineExceeded, "could not %s in time; the host may be overloaded, try again in a moment", name)
}

// noProcess says whether a program was not started because the host's process table, or the
// part of it that is the agent's, is full.
func noProcess(err error) bool {
	var failed *fs.PathError
	return errors.As(err, &failed) && failed.Op == "fork/exec" && errors.Is(failed.Err, unix.EAGAIN)
}

// at marks a fault point.
func (op *operation) at(key string) { op.s.at(op.name + "." + key) }

func (s *Service) at(point string) {
	if s.cfg.At != nil {
		s.cfg.At(point)
	}
}

// onFailure registers how what was just taken is given back.
func (op *operation) onFailure(undo func(context.Context) error) { op.undo = append(op.undo, undo) }

// rollBack undoes what the operation did, the last first. It stops at what cannot be
// undone: what was taken before that may still be in use by it.
func (op *operation) rollBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for len(op.undo) > 0 {
		last := len(op.undo) - 1
		if err := op.undo[last](ctx); err != nil {
			return err
		}
		op.undo = op.undo[:last]
	}
	return nil
}

// log says that an operation has gone well, and how long each phase was.
func (op *operation) log(id string, attrs ...any) {
	args := append([]any{"operation", op.name, "sandbox", id}, attrs...)
	op.s.cfg.Log.Info("done", append(args, slog.Group("took", op.took...))...)
}

// claim makes the caller the one who works on a sandbox, once whoever does so now is done.
// The returned context ends with ctx, or when the operation is cut off. The caller calls
// done when the sandbox is in a state that lasts.
func (s *Service) claim(ctx context.Context, id string, act action) (e *entry, op context.Context, done func(), err error) {
	for {
		s.mu.Lock()
		e, err := s.find(id)
		if err == nil && (s.closed || s.stopping && act != actPause) {
			err = errStopping
		}
		if err == nil {
			err = e.require(act)
		}
		if err != nil {
			s.mu.Unlock()
			return nil, nil, nil, err
		}
		settled, busy := e.busy()
		if !busy {
			op, done := e.begin(ctx, act)
			s.mu.Unlock()
			return e, op, done, nil
		}
		s.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
			return nil, nil, nil, ctx.Err()
		}
	}
}

// errStopping is why operations are refused and cut off when the Service is being closed.
var errStopping = fault.New(fault.HostUnavailable, "the host is stopping")

// busy says whether somebody works on the entry; then the channel is closed when they are
// done. The caller holds Service.mu.
func (e *entry) busy() (settled <-chan struct{}, busy bool) {
	if e.settled == nil {
		return nil, false
	}
	select {
	case <-e.settled:
		return nil, false
	default:
		return e.settled, true
	}
}

// begin makes the caller, who holds Service.mu, the one who works on an entry.
func (e *entry) begin(ctx context.Context, act action) (op context.Context, done func()) {
	e.former = e.sandbox
	if during := transitions[act].during; during != "" {
		e.sandbox.Status = during
		e.sandbox.Reason = ""
	}
	op, cancel := context.WithCancelCause(ctx)
	settled := make(chan struct{})
	e.settled, e.cancel = settled, cancel
	return op, func() {
		cancel(nil)
		close(settled)
	}
}
