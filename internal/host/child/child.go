// Package child runs programs for the host agent and reaps the orphans that they leave.
//
// A sandbox's processes are grandchildren of ours whose parents have ended, and a guest
// that forks all day makes thousands of them that die. Left to the machine's first
// process, which may be slow, their zombies fill the sandbox's limit of tasks and then
// the machine's. So the agent adopts and reaps them itself. Since orphans and children
// that somebody waits for look the same to the kernel, every program that the agent
// starts must be started here. The package knows nothing of what it runs.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// The children of a process are global to it, and so is this.
var (
	// starting is held shared while a child is started and becomes known, and alone
	// while an orphan is told from a child.
	starting sync.RWMutex

	mu sync.Mutex
	// waited are the children that somebody waits for; the channel closes when they
	// have been reaped.
	waited = map[int]chan struct{}{}
)

// Run is cmd.Run, safe beside Reap.
func Run(cmd *exec.Cmd) error {
	reaped := make(chan struct{})
	starting.RLock()
	err := cmd.Start()
	if err == nil {
		mu.Lock()
		waited[cmd.Process.Pid] = reaped
		mu.Unlock()
	}
	starting.RUnlock()
	if err != nil {
		return err
	}
	defer func() {
		mu.Lock()
		if waited[cmd.Process.Pid] == reaped { // its number may belong to another by now
			delete(waited, cmd.Process.Pid)
		}
		mu.Unlock()
		close(reaped)
	}()
	return cmd.Wait()
}

// Reap adopts the orphans among this process's descendants and reaps them, until ctx
// ends. It returns when it has begun, or why it cannot.
func Reap(ctx context.Context) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, unix.SIGCHLD)
	go func() {
		defer signal.Stop(ends)
		for {
			reapAll()
			select {
			case <-ctx.Done():
				return
			case <-ends:
			}
		}
	}()
	return nil
}

// reapAll reaps what has ended by now.
func reapAll() {
	for {
		pid, err := ended()
		if err != nil || pid == 0 {
			return
		}
		// A child that has just been started and ended is known after this.
		starting.Lock()
		mu.Lock()
		reaped := waited[pid]
		mu.Unlock()
		if reaped == nil {
			_, err = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		starting.Unlock()
		if reaped != nil {
			// Its own waiter is about to reap it; the kernel shows us no other before.
			<-reaped
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// ended returns a child that has ended and leaves it as it is; 0 when there is none.
func ended() (int, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return sigchldPID(&info), err
		}
	}
}
