package sandbox

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// MaxFork is how many copies of a sandbox can be made at once.
const MaxFork = 100

// Fork makes copies of a running sandbox, which keeps running, and answers when all are
// usable. It makes all of them or none. A nil timeout is that of the sandbox.
func (x *Snapshots) Fork(ctx context.Context, id string, count int, timeout *time.Duration) ([]Sandbox, error) {
	if count < 1 || count > MaxFork {
		return nil, fault.New(fault.InvalidRequest, "field \"count\" must be 1 to %d", MaxFork)
	}
	if timeout != nil {
		if err := checkPeriod("timeout_sec", *timeout); err != nil {
			return nil, err
		}
	}
	done, err := x.core.use(ctx, id, request)
	if err != nil {
		return nil, err
	}
	defer done()
	source, err := x.core.store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	copies := make([]Sandbox, count)
	for i := range copies {
		copies[i] = source.copied(timeout)
		defer x.core.claim(ctx, copies[i].ID)() //nolint:gocritic,revive // all are claimed until the function's end
	}
	if err := x.fork(ctx, id, copies); err != nil {
		x.undoFork(ctx, copies)
		return nil, err
	}
	x.core.rearmClocks()
	return copies, nil
}

// copied is the row of a copy: what the user said of the sandbox, and a life of its own.
func (s *Sandbox) copied(timeout *time.Duration) Sandbox {
	at := now()
	c := Sandbox{
		ID: newID(), Status: Starting, Template: s.Template, Resources: s.Resources,
		Timeout: s.Timeout, Deadline: s.Deadline, DeadlineFrom: at, OnTimeout: s.OnTimeout,
		Runtime: s.Runtime, HostID: s.HostID, Metadata: s.Metadata, Web: s.Web.renewed(),
		CreatedAt: at, UpdatedAt: at,
	}
	if timeout != nil {
		c.Timeout = *timeout
	}
	return c
}

func (x *Snapshots) fork(ctx context.Context, id string, copies []Sandbox) error {
	ids := make([]string, len(copies))
	for i, c := range copies {
		ids[i] = c.ID
		if err := x.core.store.Insert(ctx, c); err != nil {
			return err
		}
	}
	made, err := x.host.Fork(ctx, id, ids)
	if err != nil {
		return err
	}
	if len(made) != len(copies) {
		return fault.New(fault.AgentError, "the host made %d of %d copies", len(made), len(copies))
	}
	for i := range copies {
		if err := x.core.started(ctx, &copies[i], made[i]); err != nil {
			return err
		}
	}
	// A client that has gone never learns the ids, so nobody would ever delete them.
	return ctx.Err()
}

// undoFork removes what a fork that failed may have left.
func (x *Snapshots) undoFork(ctx context.Context, copies []Sandbox) {
	var g errgroup.Group
	g.SetLimit(reconcileWidth)
	for _, c := range copies {
		g.Go(func() error { x.core.undoCreate(ctx, c.ID); return nil })
	}
	_ = g.Wait() // no function returns an error
}
