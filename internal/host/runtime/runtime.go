// Package runtime is the contract between the sandbox lifecycle and what isolates a
// sandbox from its host: a user-space kernel or a microVM. Each driver is a package
// below this one and passes the suite in runtimetest. The contract knows of images,
// addresses and limits as plain values; it must not know of records, users or guests.
package runtime

import "context"

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
	// Processes is how many tasks the guest may have; a driver allows the host tasks
	// that it needs to run so many.
	Processes int
}

// Exit says why a sandbox ended.
type Exit struct {
	// OutOfMemory is whether the host's kernel killed it for going beyond its memory.
	OutOfMemory bool
	// OutOfTasks is whether it had reached what the host allows it of tasks.
	OutOfTasks bool
}
