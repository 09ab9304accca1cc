package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// pauseTimeout bounds how long a sandbox may take to be written down: what a slow disk needs
// for the memory and the files of a large one.
const pauseTimeout = 10 * time.Minute

// errPaused is what the streams of a sandbox end with that is paused.
var errPaused = fault.New(fault.InvalidState, "the sandbox was paused; resume it to go on")

// pausing is a pause under way.
type pausing struct {
	operation
	e        *entry
	id       string // of the new snapshot
	draft    *snapshot.Draft
	began    time.Time // when the sandbox stopped
	snapshot snapshot.Snapshot
	reason   string // that it is paused for
}

// pausePhases are the steps of a pause, in order. Up to the last of them all is undone when
// something fails, and the sandbox runs on; after it the sandbox is paused, and what it held
// is given back.
var pausePhases = []phase[*pausing]{
	{"record", "note what is to be written", (*pausing).note},
	{"prepare", "bring the guest to rest", (*pausing).prepare},
	{"hold", "hold its network", (*pausing).hold},
	{"checkpoint", "write its memory and files", (*pausing).checkpoint},
	{"commit", "make the snapshot safe", (*pausing).commit},
	{"save", "note that it is paused", (*pausing).save},
}

// Pause writes a sandbox down and ends its run. It answers when what was written is safe.
// When it fails the sandbox runs on. It goes through even when the caller goes away.
func (s *Service) Pause(ctx context.Context, id string) (Sandbox, error) {
	e, ctx, done, err := s.claim(context.WithoutCancel(ctx), id, actPause)
	if err != nil {
		return Sandbox{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, pauseTimeout)
	p := &pausing{operation: operation{s: s, name: "pause"}, e: e, id: pausePrefix + randomName()}
	if err := carryOut(ctx, &p.operation, p, pausePhases); err != nil {
		defer done()
		defer cancel()
		return Sandbox{}, p.goOn(ctx, fmt.Errorf("pause sandbox: %w", err))
	}
	paused := e.sandbox
	departed := func() {}
	if at := e.run.place; at != nil {
		departed = at.depart()
	}
	// The answer does not wait for what only this host needs to know; a resume does.
	s.watchers.Go(func() {
		defer done()
		defer cancel()
		defer departed()
		p.clear(ctx)
	})
	return paused, nil
}

// note writes down first which snapshot will be the one, should the process die from here on.
func (p *pausing) note(context.Context) error {
	return p.s.keep(p.e, func(st *state) { st.draft = p.id })
}

func (p *pausing) prepare(ctx context.Context) error {
	// It may rest although it did not answer.
	p.onFailure(func(ctx context.Context) error { p.s.wake(ctx, p.e); return nil })
	err := p.s.prepareGuest(ctx, p.e, false)
	if err == nil || ctx.Err() != nil || errors.Is(err, errEnded) {
		return err
	}
	// Rest makes a snapshot small, not safe, and a guest whose root has stopped its daemon
	// or taken its network down would else run on past every deadline. But a runtime that
	// does not answer either is not asked to write: it would be held up for much longer.
	if mute := p.s.cfg.Runtime.Answers(ctx, p.e.run.id); mute != nil {
		return errors.Join(err, mute)
	}
	p.s.cfg.Log.Warn("pause a sandbox whose guest cannot be brought to rest", "sandbox", p.e.sandbox.ID, "error", err)
	return nil
}

func (s *Service) prepareGuest(ctx context.Context, e *entry, live bool) error {
	ctx, stop := s.whileRunning(ctx, e.run.id)
	defer stop()
	if err := e.run.guest.Prepare(ctx, live); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// wakeTime bounds how long the guest of one sandbox is waited for that is to wake up.
const wakeTime = 5 * time.Second

// wake tells the guest who it is, in case it was brought to rest. One that does not answer
// is as it was before: that is no reason to end it.
func (s *Service) wake(ctx context.Context, e *entry) {
	ctx, cancel := context.WithTimeout(ctx, wakeTime)
	defer cancel()
	ctx, stop := s.whileRunning(ctx, e.run.id)
	defer stop()
	if err := e.run.guest.Init(ctx, s.identity(e, e.origin, e.run)); err != nil {
		s.cfg.Log.Warn("wake the guest of a sandbox", "sandbox", e.sandbox.ID, "error", err)
	}
}

// hold keeps everything from and to the guest, so that nothing is acknowledged that the
// snapshot lacks, and nobody hears of the end of what goes on later.
func (p *pausing) hold(ctx context.Context) error {
	network, slot := p.s.cfg.Network, p.e.run.slot
	p.onFailure(func(ctx context.Context) error { return network.Unhold(ctx, slot) })
	return network.Hold(ctx, slot)
}

func (p *pausing) checkpoint(ctx context.Context) error {
	return p.operation.freeze(ctx, p.e, p.id, func(d *snapshot.Draft) {
		p.draft, p.began = d, time.Now()
		d.SendEarly()
	})
}

// freeze writes a sandbox to a new draft and leaves it frozen; undoing it lets it go on.
func (op *operation) freeze(ctx context.Context, e *entry, id string, begin func(*snapshot.Draft)) error {
	s := op.s
	draft, err := s.cfg.Snapshots.Draft(ctx, id, s.expectedBytes(ctx, e))
	if err != nil {
		return err
	}
	op.onFailure(func(context.Context) error {
		if err := draft.Abort(); err != nil {
			// The next start removes it; the sandbox must not suffer from it.
			s.cfg.Log.Error("remove a snapshot's draft", "snapshot", id, "error", err)
		}
		return nil
	})
	// Also after a failure, for which it is no error: should the runtime not have kept its
	// promise, the sandbox would stand still for ever.
	op.onFailure(func(ctx context.Context) error {
		err := s.cfg.Runtime.Thaw(ctx, e.run.id)
		if _, ended := s.hasEnded(ctx, e.run.id); err != nil && ended {
			return nil // who watches it finds out
		}
		return err
	})
	begin(draft)
	return s.cfg.Runtime.Checkpoint(ctx, e.run.id, draft.Dir())
}

// expectedBytes is about how large a snapshot will be; 0 when nobody knows.
func (s *Service) expectedBytes(ctx context.Context, e *entry) int64 {
	usage, err := s.cfg.Runtime.Usage(ctx, e.run.id)
	if err != nil {
		return 0
	}
	return int64(usage.MemoryBytes + usage.DiskBytes)
}

func (p *pausing) commit(ctx context.Context) error {
	var err error
	p.snapshot, err = p.draft.Commit(ctx, p.s.manifest(p.e, snapshot.Pause, time.Since(p.began)))
	if err != nil {
		return err
	}
	p.onFailure(func(context.Context) error { return p.s.removeSnapshot(p.id) })
	return nil
}

// manifest describes a snapshot of a sandbox.
func (s *Service) manifest(e *entry, kind snapshot.Kind, stopped time.Duration) snapshot.Manifest {
	s.mu.Lock() // one that goes on is used meanwhile
	sb, o := e.sandbox, e.origin
	s.mu.Unlock()
	return snapshot.Manifest{
		Kind: kind, SandboxID: sb.ID, Template: sb.Template, Resources: snapshot.Resources(sb.Resources),
		Runtime: sb.Runtime, Image: o.Image, GuestDir: o.GuestDir, Env: o.Env, DefaultUser: o.DefaultUser, Token: o.Token,
		CreatedAt: time.Now(), Stopped: stopped,
	}
}

// save makes the pause a fact. From here on the sandbox is paused, whatever happens.
func (p *pausing) save(context.Context) error {
	former := p.e.snapshot
	err := p.s.keep(p.e, func(st *state) {
		st.sandbox.Status, st.sandbox.Reason = Paused, p.reason
		st.sandbox.PausedAt, st.sandbox.SnapshotBytes = p.snapshot.CreatedAt, p.snapshot.Bytes
		// The former snapshot goes when this is safe; until then it has the draft's place, so
		// that a process that dies meanwhile is followed by one that knows of it.
		st.snapshot, st.draft = p.id, former
	})
	return err
}

// clear gives back what a paused sandbox held, and removes the former snapshot.
func (p *pausing) clear(ctx context.Context) {
	s, e := p.s, p.e
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := s.endRun(ctx, e, "pause", parkSlot, errPaused); err != nil {
		// What is left of the run is ended before the next one; see resume.
		s.cfg.Log.Error("give back what a paused sandbox held", "sandbox", e.sandbox.ID, "error", err)
	}
	if err := s.removeSnapshot(e.draft); err != nil {
		s.cfg.Log.Error("remove a sandbox's former snapshot", "sandbox", e.sandbox.ID, "snapshot", e.draft, "error", err)
	}
	s.setDurable(e, func(st *state) { st.draft = "" })
	p.at("cleared")
	p.log(e.sandbox.ID, "bytes", p.snapshot.Bytes)
}

// goOn brings a sandbox back whose pause has failed.
func (p *pausing) goOn(ctx context.Context, err error) error {
	s, e := p.s, p.e
	undoErr := p.rollBack(ctx)
	if undoErr == nil {
		p.at("undone")
		s.set(e, func(st *state) { st.sandbox, st.draft = resumed(e, st.sandbox), "" })
		return err
	}
	s.cfg.Log.Error("undo pause", "sandbox", e.sandbox.ID, "error", undoErr)
	s.fail(e, "its pause failed, and it did not come back from that")
	return errors.Join(err, undoErr)
}

// resumed is a sandbox in the state that it was in before the operation under way.
func resumed(e *entry, sb Sandbox) Sandbox {
	sb.Status, sb.Reason = e.former.Status, e.former.Reason
	return sb
}

// removeSnapshot removes a snapshot if it is there; that of an empty id is not.
func (s *Service) removeSnapshot(id string) error {
	if id == "" {
		return nil
	}
	if err := s.cfg.Snapshots.Remove(id); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}
