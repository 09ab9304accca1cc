package process

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reaper owns every wait4 call of the program and hands each status to the process that
// it belongs to. Nothing else may wait for a child (os/exec would, so it is not used): two
// waiters for one child means that one of them never hears of its end.
//
// It is safe for concurrent use. It lives from newReaper to close.
type reaper struct {
	logger *slog.Logger
	// orphans says that children which nobody started come here too, as they do to PID 1
	// and to a subreaper, and have to be collected.
	orphans bool
	signals chan os.Signal
	stop    chan struct{}
	stopped chan struct{}

	// mu is held over fork and registration, over wait4 and its hand-over, and over kill.
	// So a child cannot end unregistered, however fast it is; and a registered pid has not
	// been waited for, so that it cannot be another process's by the time of the kill.
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
}

// newReaper returns a running reaper. With orphans it collects every child of the program.
func newReaper(orphans bool, logger *slog.Logger) *reaper {
	r := &reaper{
		logger:  logger,
		orphans: orphans,
		// One pending signal is enough: each makes a round over all that have ended.
		signals: make(chan os.Signal, 1),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
		waiting: make(map[int]chan unix.WaitStatus),
	}
	signal.Notify(r.signals, unix.SIGCHLD)
	go r.run()
	return r
}

// launch calls fork, which returns the pid of a new child, and returns a channel that
// gets the child's status once.
func (r *reaper) launch(fork func() (int, error)) (int, <-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, nil, err
	}
	exited := make(chan unix.WaitStatus, 1)
	r.waiting[pid] = exited
	return pid, exited, nil
}

// whileAlive calls do, during which pid is the child's and no other process's. It returns
// ESRCH when the child has ended.
func (r *reaper) whileAlive(pid int, do func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, alive := r.waiting[pid]; !alive {
		return unix.ESRCH
	}
	return do()
}

// close ends the reaper. Children that end later stay zombies.
func (r *reaper) close() {
	signal.Stop(r.signals)
	close(r.stop)
	<-r.stopped
}

// lookEvery is how often the reaper looks for children that ended without a signal. gVisor
// has been seen to lose the news of an end when the sandbox was written down in that moment.
const lookEvery = 2 * time.Second

func (r *reaper) run() {
	defer close(r.stopped)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-r.signals:
			r.collect()
		case <-look.C:
			r.collect()
		case <-r.stop:
			return
		}
	}
}

// collect hands over the status of every child that has ended.
func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.orphans {
		for r.collectOne(-1) {
		}
		return
	}
	for pid := range r.waiting {
		r.collectOne(pid)
	}
}

// collectOne waits for pid, or with -1 for any child, and says whether one had ended.
func (r *reaper) collectOne(pid int) bool {
	var status unix.WaitStatus
	ended, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
	switch {
	case errors.Is(err, unix.EINTR):
		return r.collectOne(pid)
	case err != nil:
		if !errors.Is(err, unix.ECHILD) {
			r.logger.Error("wait for children", "err", err)
		}
		return false
	case ended <= 0:
		return false
	}
	if exited, ok := r.waiting[ended]; ok {
		delete(r.waiting, ended)
		exited <- status
	}
	return true
}
