package process

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// exitGrace is how long the end of a process waits for its output to be closed. A
// descendant that keeps a pipe open, as a server started in the background does, delays
// the end by this much and no longer; what the process itself wrote is in the pipe by then
// and is read in any case.
const exitGrace = 500 * time.Millisecond

// Process is a process that was started. It is safe for concurrent use, and goes by itself
// some time after the process has ended.
type Process struct {
	manager *Manager
	spec    Spec
	pid     int
	started time.Time
	exited  <-chan unix.WaitStatus
	files   *files
	input   *input
	output  output
	gone    chan struct{} // closed when the process has ended
}

// PID returns the process's id, as seen by everything in the sandbox.
func (p *Process) PID() int { return p.pid }

// Spec returns what the process was started with, without its environment.
func (p *Process) Spec() Spec { return p.spec }

// Signal sends sig to the process and its whole group; of a terminal, to the job in its
// foreground as well.
func (p *Process) Signal(sig unix.Signal) error {
	err := p.manager.reaper.whileAlive(p.pid, func() error {
		if p.files.master != nil {
			return p.signalTerminal(sig)
		}
		return unix.Kill(-p.pid, sig)
	})
	switch {
	case errors.Is(err, unix.ESRCH):
		return fault.New(fault.NotFound, "process with pid %d not found", p.pid)
	case err != nil:
		return fault.Wrap(err, fault.Internal, "the signal could not be sent to process %d", p.pid)
	}
	return nil
}

// Subscribe returns a subscription to all that the process prints from now on and to its
// end, also when that has already come.
func (p *Process) Subscribe() *Subscription {
	return p.output.subscribe(func(sub *Subscription, kept *scrollback) {
		end := kept.end()
		sub.begin(nil, &end)
	})
}

// Replay is Subscribe with what is kept of the latest output before. Nothing is missing
// between the two and nothing comes twice. The output of a terminal comes so that it paints
// the screen.
func (p *Process) Replay() *Subscription {
	return p.output.subscribe(func(sub *Subscription, kept *scrollback) { sub.begin(kept.replay(), nil) })
}

// ReplayFrom is Subscribe with all that was written since a position, or since the oldest
// that is kept if that is later.
func (p *Process) ReplayFrom(from Position) *Subscription {
	return p.output.subscribe(func(sub *Subscription, kept *scrollback) {
		events, at := kept.after(from)
		sub.begin(events, &at)
	})
}

// run sees the process through to its end.
func (p *Process) run() {
	defer p.manager.wg.Done()
	var pumps sync.WaitGroup
	for _, out := range p.files.outlets() {
		pumps.Go(func() { p.pump(out.file, out.kind) })
	}

	status, timedOut := p.wait()
	p.manager.retire(p)
	close(p.gone)
	p.input.close()
	for _, out := range p.files.outlets() {
		// On a file that its pump has closed this fails, and needs no deadline.
		_ = out.file.SetReadDeadline(time.Now().Add(exitGrace))
	}
	pumps.Wait()
	p.output.finish(endOf(status, timedOut))
	p.manager.settle(p)
}

// wait returns when the process has ended, and ends it when its limit has passed.
func (p *Process) wait() (status unix.WaitStatus, timedOut bool) {
	if p.spec.Limit <= 0 {
		return <-p.exited, false
	}
	var limit countdown
	limit.start(p.spec.Limit)
	defer limit.stop()
	for passed := false; !passed; {
		select {
		case status = <-p.exited:
			return status, false
		case <-limit.timer.C:
			passed = limit.over()
		}
	}
	// If it has just ended by itself there is nothing to kill, and its own end counts.
	err := p.Signal(unix.SIGKILL)
	if err != nil && !fault.Is(err, fault.NotFound) {
		p.manager.logger.Error("kill a process whose time is over", "pid", p.pid, "err", err)
	}
	return <-p.exited, err == nil
}
