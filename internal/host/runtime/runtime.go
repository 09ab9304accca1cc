// Package runtime is the contract between the sandbox lifecycle and what isolates a
// sandbox from its host: a user-space kernel or a microVM. Each driver is a package
// below this one and passes the suite in runtimetest. The contract knows of images,
// addresses and limits as plain values; it must not know of records, users or guests.
package runtime

import (
	"context"
	"time"
)

// Driver boots and ends sandboxes. Its methods are safe for concurrent use; for one id
// the caller calls one of Start and Destroy at a time.
type Driver interface {
	// Name is what users see as a sandbox's runtime, such as "gvisor".
	Name() string

	// Start boots a sandbox and returns when its first process runs; whether that
	// process is ready is for the caller to find out. When Start fails, or ctx ends
	// before it is done, nothing of the sandbox is left.
	Start(ctx context.Context, spec Spec) error

	// Wait blocks until the sandbox has ended by itself or by Destroy, and says why.
	// It returns ctx's error when ctx ends first. An id that does not run has ended.
	Wait(ctx context.Context, id string) (Exit, error)

	// Destroy ends a sandbox at once, whatever it does, and gives back everything
	// that the driver took for it. An unknown id is no error.
	Destroy(ctx context.Context, id string) error

	// List returns the ids of all sandboxes that have anything here: running ones and
	// what a killed process of ours left of others.
	List(ctx context.Context) ([]string, error)
}

// Checkpointer is what a driver that can write a sandbox down does besides. A Checkpoint,
// a Thaw and the calls of Driver for one id come one at a time.
type Checkpointer interface {
	// Answers returns nil when the runtime of a sandbox answers, whatever its guest does, and
	// could be asked for a checkpoint. It takes 10 s at most.
	Answers(ctx context.Context, id string) error

	// Checkpoint writes the memory and the disk of a running sandbox to files in dir,
	// which exists and is empty, and leaves the sandbox frozen in just that state, until
	// Thaw or Destroy. It does not sync the files. When it fails, for want of room on the
	// disk (fault.NoSpace), for something in the guest that the runtime cannot write down
	// (fault.InvalidState) or because ctx ended, the sandbox runs on as if nothing had
	// been, and what is in dir is of no use. What is being written when ctx ends is written
	// first. The guest's network is not frozen: data that comes in is still acknowledged,
	// unless the caller keeps it away.
	Checkpoint(ctx context.Context, id, dir string) error

	// Thaw lets a sandbox go on that is frozen, also one that a process of ours froze that
	// has died since. One that is not frozen is no error.
	Thaw(ctx context.Context, id string) error
}

// Meter is how a driver tells what a sandbox uses.
type Meter interface {
	// Usage returns what a running sandbox uses; fault.NotFound when it does not run. It
	// is cheap enough to be called twice a second for hundreds of sandboxes.
	Usage(ctx context.Context, id string) (Usage, error)
}

// Usage is what a sandbox uses of its host.
type Usage struct {
	// CPU is the time that it has had so far, of all processors together.
	CPU time.Duration
	// MemoryBytes is what it holds now, without what the host's kernel could take back, and
	// MemoryLimitBytes where the host ends it: its guest's limit and what the driver needs.
	MemoryBytes, MemoryLimitBytes uint64
	// DiskBytes is what its guest has written and not removed.
	DiskBytes uint64
	// Processes is how many tasks, which are processes and their threads, the guest has of
	// those that it may have ProcessLimit of, when it was last asked: a moment ago, or half a
	// minute of a guest that does next to nothing. Both are 0 when nobody knows.
	Processes, ProcessLimit int
}

// Spec is what a sandbox is made of.
type Spec struct {
	// ID is the sandbox's id; it is also used in names of files, so it is [a-z0-9]+. No
	// id may be the beginning of another.
	ID       string
	Hostname string
	// RootFS is the absolute path of an EROFS image. It is never written to; what the
	// guest writes goes to a layer of its own that ends with the sandbox.
	RootFS string
	// Args is the first process and its arguments, run as root; Env is its environment.
	Args []string
	Env  []string
	// Mounts are host directories to be seen inside. At least one is needed.
	Mounts []Mount
	// Namespace is the path of a network namespace whose eth0 becomes the guest's.
	Namespace string
	Limits    Limits

	// Checkpoint, unless empty, is a directory that Checkpointer.Checkpoint has filled: the
	// sandbox goes on from there in place of booting. ID, Hostname, Namespace, the sources
	// of Mounts and the limits but for the disk may differ from those of the sandbox that
	// was written down, Args and Env are ignored, and the rest must be as it was.
	Checkpoint string
	// BeforeRestore, unless nil, is called while the sandbox is being prepared; nothing of
	// the checkpoint is restored before it returns. An error of it fails the Start, and is
	// what the Start returns. Its context ends when the preparation fails.
	BeforeRestore func(context.Context) error
}

// Mount shows a host directory inside the sandbox, read-only.
type Mount struct {
	Source string
	Target string
}

// Limits bound what a sandbox takes from its host.
type Limits struct {
	VCPUs int
	// MemoryMB is for the guest, in MiB; a driver adds what it needs for itself.
	MemoryMB int
	// DiskMB bounds what the guest may write to its root file system, in MiB.
	DiskMB int
	// Processes is how many tasks the guest may have, to which the guest daemon holds it; a
	// driver allows the host tasks that it needs to run so many.
	Processes int
}

// Exit says why a sandbox ended.
type Exit struct {
	// OutOfMemory is whether the host's kernel killed it for going beyond its memory.
	OutOfMemory bool
	// OutOfTasks is whether it had reached what the host allows it of tasks.
	OutOfTasks bool
}
