package process

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// spawner runs every fork of the program. Where a limit on the number of processes is
// set, it forks on one thread that sits in the limiting cgroup while the rest of the
// program stays outside: a child is born in the cgroup of the thread that forks it, so
// there is no moment at which it is unlimited, and the daemon stays responsive while a
// fork bomb has used the limit up.
//
// It is safe for concurrent use. It lives from newSpawner to close.
type spawner struct {
	requests  chan func() // nil: fork on the caller's thread
	closeOnce sync.Once
}

// newSpawner returns a spawner whose children belong to the cgroup v1 with this tasks
// file, or to no cgroup of their own when tasks is empty.
func newSpawner(tasks string) (*spawner, error) {
	if tasks == "" {
		return &spawner{}, nil
	}
	s := &spawner{requests: make(chan func())}
	joined := make(chan error)
	go func() {
		// Never unlocked: the thread must not go back to the scheduler, which would run
		// other goroutines inside the limit, and ends with this goroutine.
		runtime.LockOSThread()
		tid := strconv.Itoa(unix.Gettid())
		err := os.WriteFile(tasks, []byte(tid), 0)
		joined <- err
		if err != nil {
			return
		}
		for fork := range s.requests {
			fork()
		}
	}()
	if err := <-joined; err != nil {
		return nil, fmt.Errorf("put the forking thread into the cgroup: %w", err)
	}
	return s, nil
}

// do calls fork on the right thread and returns when it has returned.
func (s *spawner) do(fork func()) {
	if s.requests == nil {
		fork()
		return
	}
	done := make(chan struct{})
	s.requests <- func() {
		defer close(done)
		fork()
	}
	<-done
}

// close ends the thread. Nothing may be forked afterwards.
func (s *spawner) close() {
	s.closeOnce.Do(func() {
		if s.requests != nil {
			close(s.requests)
		}
	})
}

// limitCgroup makes a cgroup v1 that holds at most limit processes, under name in a pids
// hierarchy that it mounts at dir, and returns the path of its tasks file.
func limitCgroup(dir, name string, limit int) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cgroup mount point: %w", err)
	}
	if err := unix.Mount("none", dir, "cgroup", 0, "pids"); err != nil {
		return "", fmt.Errorf("mount the pids controller: %w", err)
	}
	group := filepath.Join(dir, name)
	if err := os.MkdirAll(group, 0o755); err != nil {
		return "", fmt.Errorf("make the cgroup: %w", err)
	}
	// The forking thread is a member and not one of the user's processes.
	limit++
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.Itoa(limit)), 0); err != nil {
		return "", fmt.Errorf("set the limit: %w", err)
	}
	return filepath.Join(group, "tasks"), nil
}
