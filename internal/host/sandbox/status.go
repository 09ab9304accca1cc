package sandbox

import (
	"slices"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Status is the state that a sandbox is in.
type Status string

// The states of a sandbox on its host.
const (
	Starting Status = "starting"
	Running  Status = "running"
	Pausing  Status = "pausing"  // it is being written down; nobody can use it
	Paused   Status = "paused"   // it is on the disk alone
	Resuming Status = "resuming" // it is on its way from the disk
	Stopping Status = "stopping"
	Stopped  Status = "stopped" // ended; nothing of it is left
	// Failed has ended by a fault. Nothing of it is left but what it can be resumed from, if
	// it was paused before. Or it runs, and could not be taken over yet; see state.untaken.
	Failed Status = "error"
)

var statuses = []Status{Starting, Running, Pausing, Paused, Resuming, Stopping, Stopped, Failed}

// action is something that is done to a sandbox.
type action string

const (
	actCreate   action = "create"   // make it
	actUse      action = "use"      // run commands, read and write files
	actPause    action = "pause"    // write it down and end its run
	actResume   action = "resume"   // go on from what was written down
	actSnapshot action = "snapshot" // write it down while it goes on, for others to be made from
	actDestroy  action = "destroy"  // by request
	actEnd      action = "end"      // it has ended by itself
	actAdopt    action = "adopt"    // take over its run, which could not be done before
)

// transition is what an action is legal in, and what a sandbox is while the action is under
// way. An empty During leaves it as it is.
type transition struct {
	from   []Status
	during Status
}

// transitions is the one table of what may be done in which state. What is not here is
// fault.InvalidState; but a destroy waits for, or cuts off, whatever is under way, since
// nobody wants it to fail.
var transitions = map[action]transition{
	actUse:      {from: []Status{Running}},
	actPause:    {from: []Status{Running}, during: Pausing},
	actResume:   {from: []Status{Paused, Failed}, during: Resuming}, // Failed: when it was paused before
	actSnapshot: {from: []Status{Running}},
	actDestroy:  {from: []Status{Running, Paused, Stopped, Failed}, during: Stopping},
	actEnd:      {from: []Status{Running}, during: Stopping},
	actAdopt:    {from: []Status{Failed}},
}

// advice is what to do about a state in which something is not possible.
var advice = map[Status]string{
	Starting: "wait until it runs",
	Pausing:  "wait until it is paused, and resume it",
	Paused:   "resume it first",
	Resuming: "wait until it runs",
}

// require is the function require for an entry, which knows more of a sandbox that failed:
// while its run goes on untaken it is not resumed, since that would end it.
func (e *entry) require(act action) error {
	switch taken := e.untaken == ""; {
	case act == actAdopt && taken, act == actResume && !taken:
		return illegal(e.sandbox)
	}
	return require(e.sandbox, act)
}

// require returns fault.InvalidState when an action is not legal now. The caller holds
// the lock that guards the sandbox's status.
func require(sb Sandbox, act action) error {
	legal := slices.Contains(transitions[act].from, sb.Status)
	if act == actResume && sb.Status == Failed && sb.PausedAt.IsZero() {
		legal = false
	}
	if legal {
		return nil
	}
	if act == actPause && sb.Status == Paused {
		return fault.New(fault.InvalidState, "sandbox %s is paused already", sb.ID)
	}
	if act == actResume && sb.Status == Running {
		return fault.New(fault.InvalidState, "sandbox %s is running; there is nothing to resume", sb.ID)
	}
	return illegal(sb)
}

// illegal is why something cannot be done to a sandbox in its state.
func illegal(sb Sandbox) error {
	why := sb.Reason
	if why == "" {
		why = advice[sb.Status]
	}
	if why != "" {
		return fault.New(fault.InvalidState, "sandbox %s is %s (%s)", sb.ID, sb.Status, why)
	}
	return fault.New(fault.InvalidState, "sandbox %s is %s", sb.ID, sb.Status)
}
