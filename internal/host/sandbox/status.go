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
	Stopping Status = "stopping"
	Stopped  Status = "stopped" // ended; nothing of it is left
	Failed   Status = "error"   // ended by a fault; nothing of it is left
)

// action is something that is done to a sandbox.
type action string

const (
	actUse     action = "use"     // run commands, read and write files
	actDestroy action = "destroy" // by request
	actEnd     action = "end"     // it has ended by itself
)

// legal is the one table of what may be done in which state.
var legal = map[action][]Status{
	actUse:     {Running},
	actDestroy: {Running, Stopped, Failed},
	actEnd:     {Running},
}

// require returns fault.InvalidState when an action is not legal now. The caller holds
// the lock that guards the sandbox's status.
func require(sb Sandbox, act action) error {
	if slices.Contains(legal[act], sb.Status) {
		return nil
	}
	if sb.Reason != "" {
		return fault.New(fault.InvalidState, "sandbox %s is %s (%s)", sb.ID, sb.Status, sb.Reason)
	}
	return fault.New(fault.InvalidState, "sandbox %s is %s", sb.ID, sb.Status)
}
