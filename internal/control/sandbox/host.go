package sandbox

import (
	"context"
	"io"
	"time"
)

// Host is the life of sandboxes on the host that runs them. Its errors are fault's, and
// it is safe for concurrent use.
type Host interface {
	// Describe says what the host is and can run.
	Describe(ctx context.Context) (HostInfo, error)
	// Create answers when the sandbox is usable. A failed create leaves nothing behind.
	Create(ctx context.Context, spec Spec) (HostSandbox, error)
	// Get returns a sandbox as it is now; an unknown id is not_found.
	Get(ctx context.Context, id string) (HostSandbox, error)
	// Pause answers when the sandbox is safe on the disk. When it fails the sandbox runs on.
	Pause(ctx context.Context, id string) (HostSandbox, error)
	// Resume answers when the sandbox is usable, having waited for room for at most wait.
	// When it fails the sandbox is still what it was.
	Resume(ctx context.Context, id string, wait time.Duration) (HostSandbox, error)
	// Destroy ends a sandbox in any state; an unknown id is not_found.
	Destroy(ctx context.Context, id string) error
	// Watch calls each with every sandbox of the host, then once with Synced, then with
	// every change, until ctx ends, the host goes away or each returns an error. It
	// always returns an error.
	Watch(ctx context.Context, each func(HostEvent) error) error
}

// HostSnapshots is the snapshots and copies of sandboxes on the host that runs them, and
// what sandboxes use there.
type HostSnapshots interface {
	// Fork makes copies of a running sandbox, in the order of their ids: all or none.
	Fork(ctx context.Context, id string, copies []string) ([]HostSandbox, error)
	// Create writes a running sandbox down, which keeps running.
	Create(ctx context.Context, sandboxID, snapshotID string) (HostSnapshot, error)
	List(ctx context.Context) ([]HostSnapshot, error)
	// Delete removes a snapshot; an unknown id is not_found.
	Delete(ctx context.Context, id string) error
	// SetWarm says of which snapshots how many sandboxes are kept ready, in place of what
	// was said before.
	SetWarm(ctx context.Context, counts map[string]int) error
	// Metrics returns what a sandbox has used in the time before now, oldest first.
	Metrics(ctx context.Context, id string, before time.Duration) ([]Point, error)
}

// HostSnapshot is a snapshot as its host has it.
type HostSnapshot struct {
	ID        string
	SandboxID string
	Template  string
	Resources Resources
	User      string // default user
	SizeBytes int64
	Stopped   time.Duration // how long the sandbox stood still for it
	CreatedAt time.Time
	// Damaged is whether it is not what was written; it can only be deleted then.
	Damaged bool
}

// Point is what a sandbox used at one time.
type Point struct {
	Time                     time.Time
	CPUPct                   float64 // of one processor
	MemoryBytes              int64
	DiskBytes                int64
	Processes                int     // and their threads
	SentBytes, ReceivedBytes int64   // since it was made
	SentRate, ReceivedRate   float64 // bits per second
	Limits                   Limits  // the latest that are known
}

// Limits is the most that a sandbox may use; zeroes: there is no limit, or none is known.
type Limits struct {
	CPUPct                 float64
	MemoryBytes, DiskBytes int64
	Processes              int
	NetworkBitsPerSecond   int64 // each way
}

// HostProcesses is the processes in sandboxes on the host that runs them.
type HostProcesses interface {
	// Start returns when the command has started. The process outlives the stream and
	// ctx, which are only about its events. What it returns has no tag.
	Start(ctx context.Context, id string, cmd Command) (Started, EventStream, error)
	// Connect follows a process that was started before.
	Connect(ctx context.Context, id string, f Follow) (Started, EventStream, error)
	List(ctx context.Context, id string) ([]Process, error)
	// SendInput returns when the process's stdin or terminal has taken all of it.
	SendInput(ctx context.Context, id string, p Selector, in Input) error
	CloseStdin(ctx context.Context, id string, p Selector) error
	Signal(ctx context.Context, id string, p Selector, sig Signal) error
	Resize(ctx context.Context, id string, p Selector, size TerminalSize) error
}

// EventStream is what a process does after its start. It is not safe for concurrent use.
type EventStream interface {
	// Next blocks for the next event, the last of which is an Exit. Data of the event
	// is the caller's. When the stream ends before an Exit it returns io.EOF.
	Next() (Event, error)
	// Close frees the stream and leaves the process alone.
	Close() error
}

// HostFiles is the files of sandboxes on the host that runs them. An empty user is the
// sandbox's default user.
type HostFiles interface {
	Stat(ctx context.Context, id, user, path string) (FileEntry, error)
	List(ctx context.Context, id, user, path string, depth int) ([]FileEntry, error)
	MakeDir(ctx context.Context, id, user, path string) (FileEntry, error)
	Move(ctx context.Context, id, user, from, to string) (FileEntry, error)
	Remove(ctx context.Context, id, user, path string) error
	// Read streams one file; the caller closes it.
	Read(ctx context.Context, id, user, path string) (Contents, error)
	// Write makes what r yields the contents of one file. A reader that fails leaves the
	// write failed, never a file that looks complete. Size is -1 when it is unknown.
	Write(ctx context.Context, id, user, path string, r io.Reader, size int64) error
}

// HostInfo is what a host is and can run.
type HostInfo struct {
	ID      string
	Runtime string
	Max     Resources // for one sandbox
	// Templates are the names of those that the host brings itself.
	Templates []string
}

// Spec is what a host needs to know to make a sandbox.
type Spec struct {
	ID        string
	Template  string
	Resources Resources
	Env       map[string]string
	User      string // default user; empty: the template's
	// SnapshotID, unless empty, is the snapshot that it is made from.
	SnapshotID string
	Wait       time.Duration // how long to wait for room at most
}

// HostSandbox is a sandbox as its host sees it.
type HostSandbox struct {
	ID        string
	Status    Status
	Reason    string
	Runtime   string
	HostIP    string
	GuestIP   string
	CreatedAt time.Time
	StartedAt time.Time
	Template  string
	Resources Resources
	// PausedAt is when the state was written down that it can be resumed from, and
	// SnapshotBytes what that takes on the disk. Zero: there is none.
	PausedAt      time.Time
	SnapshotBytes int64
}

// HostEvent is one step of Host.Watch: a sandbox, or that all were sent.
type HostEvent struct {
	Sandbox HostSandbox
	Synced  bool
}

// Command is a program to run.
type Command struct {
	Cmd     string
	Args    []string
	Env     map[string]string
	Cwd     string        // empty: the user's home
	User    string        // empty: the sandbox's default user
	Tag     string        // a name to find it by; may be empty
	Timeout time.Duration // then it is killed; 0: never
	Stdin   bool          // whether SendInput will write to it
	// Terminal, unless nil, is the size of the terminal that it gets in place of the
	// three streams.
	Terminal *TerminalSize
	// Background is whether nobody waits for its end, so that its running alone does not
	// keep the sandbox awake.
	Background bool
}

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Cols, Rows uint16 }

// Input is what a process is to read, from its terminal or from its stdin.
type Input struct {
	Terminal bool
	Data     []byte
}

// Process is a running command.
type Process struct {
	PID  uint32
	Tag  string
	Cmd  string
	Args []string
	// Background is as in Command, and true for terminals.
	Background bool
}

// Selector names a process by its pid or, when that is 0, by its tag.
type Selector struct {
	PID uint32
	Tag string
}

// Signal is a signal that can be sent to a process.
type Signal string

// The signals.
const (
	SIGKILL Signal = "SIGKILL"
	SIGTERM Signal = "SIGTERM"
)

// EventKind says which field of an Event counts.
type EventKind int

// The kinds of events.
const (
	Stdout EventKind = iota + 1
	Stderr
	Terminal // output of a process that has a terminal
	Exited
)

// Event is something that a process did.
type Event struct {
	Kind EventKind
	Data []byte // of Stdout, Stderr and Terminal
	Exit Exit   // of Exited
}

// Exit is how a process ended.
type Exit struct {
	Code     int32  // -1 when a signal ended it
	Signal   string // its name, or empty
	TimedOut bool   // killed because its timeout passed
}

// FileType is what a path names.
type FileType string

// The types of files.
const (
	RegularFile FileType = "file"
	Directory   FileType = "directory"
	Symlink     FileType = "symlink"
)

// FileEntry describes one file, directory or link.
type FileEntry struct {
	Name          string
	Path          string
	Type          FileType
	Size          int64  // bytes
	Mode          uint32 // permission bits
	Permissions   string // as ls prints them
	Owner         string
	Group         string
	ModifiedAt    time.Time
	SymlinkTarget string
}

// Contents is a file being read. Size is -1 when it is unknown.
type Contents struct {
	io.ReadCloser
	Size int64
}
