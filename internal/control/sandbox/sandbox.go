// Package sandbox is sandboxes as users see them: it decides what may be done, stores
// what was decided and asks the host that a sandbox is on to do it. Service has their
// life, Processes the commands in them and Files their files.
//
// It declares the store and the host that it needs and must not know SQL, HTTP or the
// RPC that they speak.
package sandbox

import (
	"time"
)

// Status is where a sandbox is in its life, as the native API names it.
type Status string

// The statuses. Stopped, Missing and Error are ends and come with a reason; the host's
// word can bring a sandbox back from them.
const (
	Pending  Status = "pending"
	Starting Status = "starting"
	Running  Status = "running"
	Pausing  Status = "pausing"
	Paused   Status = "paused"
	Resuming Status = "resuming"
	Stopping Status = "stopping"
	Stopped  Status = "stopped"
	Missing  Status = "missing"
	Error    Status = "error"
)

// OnTimeout is what happens when a sandbox's idle timeout or deadline passes.
type OnTimeout string

// What can happen at a timeout.
const (
	Pause OnTimeout = "pause"
	Kill  OnTimeout = "kill"
)

// Resources is what a sandbox may use.
type Resources struct {
	VCPUs    int
	MemoryMB int // MiB
	DiskMB   int // MiB that it may write
}

// Sandbox is a value: a sandbox as the store last knew it. Zero times mean never.
type Sandbox struct {
	ID        string
	Status    Status
	Reason    string // why the status is what it is; for a person
	Template  string
	Resources Resources

	Timeout  time.Duration // idle timeout; 0: none
	Deadline time.Duration // 0: none
	// DeadlineFrom is what Deadline counts from: the creation, the latest resume, or the
	// moment in which it was set. Zero is CreatedAt.
	DeadlineFrom time.Time
	OnTimeout    OnTimeout

	Runtime string
	HostID  string
	HostIP  string
	GuestIP string

	Metadata map[string]string
	Web      Web

	CreatedAt    time.Time
	StartedAt    time.Time
	LastActiveAt time.Time
	UpdatedAt    time.Time

	// PausedAt is when the state was written down that the sandbox can be resumed from,
	// and SnapshotBytes what that takes on the host's disk.
	PausedAt      time.Time
	SnapshotBytes int64
}

// EndsAt is when the sandbox is paused or killed: when the deadline or, without further
// activity, the idle timeout passes, whichever is sooner. It is zero when there is neither,
// and while the sandbox does not run, since its clocks stand still then.
func (s *Sandbox) EndsAt() time.Time {
	ends, _ := s.end()
	return ends
}

// end is when the first of the two times passes, and whether it is the deadline.
func (s *Sandbox) end() (at time.Time, deadline bool) {
	switch s.Status {
	case Pausing, Paused, Resuming, Stopping, Stopped, Missing, Error:
		return time.Time{}, false
	}
	if s.Timeout > 0 {
		active := s.LastActiveAt
		if active.IsZero() {
			active = s.CreatedAt
		}
		at = active.Add(s.Timeout)
	}
	if s.Deadline > 0 {
		from := s.DeadlineFrom
		if from.IsZero() {
			from = s.CreatedAt
		}
		if d := from.Add(s.Deadline); at.IsZero() || d.Before(at) {
			return d, true
		}
	}
	return at, false
}

// resumable reports whether there is a state that the sandbox can go back to.
func (s *Sandbox) resumable() bool {
	return s.Status == Paused || s.Status == Error && !s.PausedAt.IsZero()
}

// Filter says which sandboxes a Store lists: newest first, then by id. Zero fields do
// not filter.
type Filter struct {
	Status   Status
	Template string
	Metadata map[string]string // all must match
	Timed    bool              // only those with an idle timeout or a deadline
	After    Position          // only those that come after this one
	Limit    int               // 0: no limit
}

// Position is a place in a list of sandboxes.
type Position struct {
	CreatedAt time.Time
	ID        string
}
