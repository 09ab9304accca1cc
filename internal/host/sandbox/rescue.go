package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// errNoNetwork is why a run cannot be taken over whose network slot is not there any more: a
// link that is made again is none that the guest has.
var errNoNetwork = errors.New("its network is gone")

// reasonNoNetwork is why a sandbox was paused that nobody asked to pause.
const reasonNoNetwork = "its network was lost while the host's agent did not run, so it was written down as it was; resume it to go on with another"

// rescuePhases are the steps of a rescue: a pause of a guest that cannot be reached, and that
// nothing has to be kept away from.
var rescuePhases = []phase[*pausing]{
	{"record", "note what is to be written", (*pausing).noteRescue},
	// A pause that was cut off may have frozen it.
	{"prepare", "let it go on", func(p *pausing, ctx context.Context) error { return p.s.cfg.Runtime.Thaw(ctx, p.e.run.id) }},
	{"checkpoint", "write its memory and files", (*pausing).checkpoint},
	{"commit", "make the snapshot safe", (*pausing).commit},
	{"save", "note that it is paused", (*pausing).save},
}

// noteRescue is note for a sandbox that is not in the middle of a pause yet, so that whoever
// comes after a death of this process takes the snapshot for its state once it is safe.
func (p *pausing) noteRescue(context.Context) error {
	return p.s.keep(p.e, func(st *state) {
		st.draft = p.id
		st.sandbox.Status, st.sandbox.Reason, st.untaken = Pausing, "", ""
	})
}

// rescue writes a run down that has lost its network and ends it: resumed it gets another
// one. When that fails the run is left as it is.
func (s *Service) rescue(ctx context.Context, e *entry, was Status) error {
	ctx, cancel := context.WithTimeout(ctx, pauseTimeout)
	defer cancel()
	before := e.draft
	p := &pausing{operation: operation{s: s, name: "pause"}, e: e, id: pausePrefix + randomName(), reason: reasonNoNetwork}
	if err := carryOut(ctx, &p.operation, p, rescuePhases); err != nil {
		err = errors.Join(fmt.Errorf("write down a sandbox that has lost its network: %w", err), p.rollBack(ctx))
		s.leaveUntaken(e, was, err)
		return err
	}
	s.cfg.Log.Warn("a running sandbox had lost its network and was paused", "sandbox", e.sandbox.ID)
	p.clear(ctx)
	s.removeOld(e, before)
	return nil
}

// leaveUntaken notes of a sandbox that it runs and could not be taken over.
func (s *Service) leaveUntaken(e *entry, was Status, err error) {
	s.cfg.Log.Error("a running sandbox could not be taken over; trying again", "sandbox", e.sandbox.ID, "error", err)
	reason := fmt.Sprintf("it runs, but could not be taken over: %s; it is tried again", fault.MessageOf(err))
	s.set(e, func(st *state) { st.sandbox.Status, st.sandbox.Reason, st.untaken = Failed, reason, was })
	s.at("adopt.untaken")
}
