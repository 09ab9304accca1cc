package process

import (
	"errors"
	"os"
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

// Process is a running process. It is safe for concurrent use, and goes by itself when
// the process has ended.
type Process struct {
	manager        *Manager
	spec           Spec
	pid            int
	started        time.Time
	exited         <-chan unix.WaitStatus
	stdout, stderr *os.File
	stdin          *input

	mu          sync.Mutex
	subscribers map[*Subscription]struct{}
	over        bool
	end         End // valid once over
}

// PID returns the process's id, as seen by everything in the sandbox.
func (p *Process) PID() int { return p.pid }

// Spec returns what the process was started with.
func (p *Process) Spec() Spec { return p.spec }

// Signal sends sig to the process and its whole group.
func (p *Process) Signal(sig unix.Signal) error {
	err := p.manager.reaper.signalGroup(p.pid, sig)
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
	sub := newSubscription(stallLimit, p.forget)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		sub.push(Event{Kind: Ended, End: p.end})
		return sub
	}
	p.subscribers[sub] = struct{}{}
	return sub
}

// run sees the process through to its end.
func (p *Process) run() {
	defer p.manager.wg.Done()
	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(p.stdout, Stdout) })
	pumps.Go(func() { p.pump(p.stderr, Stderr) })

	status, timedOut := p.wait()
	p.manager.remove(p)
	p.stdin.close()
	// Setting a deadline on a pipe that its pump has closed fails, and needs no deadline.
	_ = p.stdout.SetReadDeadline(time.Now().Add(exitGrace))
	_ = p.stderr.SetReadDeadline(time.Now().Add(exitGrace))
	pumps.Wait()
	p.finish(endOf(status, timedOut))
}

// wait returns when the process has ended, and ends it when its limit has passed.
func (p *Process) wait() (status unix.WaitStatus, timedOut bool) {
	if p.spec.Limit <= 0 {
		return <-p.exited, false
	}
	limit := time.NewTimer(time.Until(p.started.Add(p.spec.Limit)))
	defer limit.Stop()
	select {
	case status = <-p.exited:
		return status, false
	case <-limit.C:
	}
	// If it has just ended by itself there is nothing to kill, and its own end counts.
	err := p.Signal(unix.SIGKILL)
	if err != nil && !fault.Is(err, fault.NotFound) {
		p.manager.logger.Error("kill a process whose time is over", "pid", p.pid, "err", err)
	}
	return <-p.exited, err == nil
}

// publish gives a piece of output to every subscriber, and takes over the caller's
// reference. It waits for those that have no room.
func (p *Process) publish(kind Kind, b *buffer, n int) {
	defer b.release()
	ev := Event{Kind: kind, Data: b.data[:n], from: b}
	// One subscriber is the rule and gets its copy of the list without allocation.
	var few [4]*Subscription
	p.mu.Lock()
	subs := few[:0]
	for sub := range p.subscribers {
		subs = append(subs, sub)
	}
	p.mu.Unlock()
	for _, sub := range subs {
		b.retain()
		if !sub.push(ev) {
			p.forget(sub)
		}
	}
}

func (p *Process) forget(sub *Subscription) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.subscribers, sub)
}

// finish tells every subscriber, and all that come later, how the process ended.
func (p *Process) finish(end End) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over, p.end = true, end
	for sub := range p.subscribers {
		sub.push(Event{Kind: Ended, End: end}) // always has room
	}
	p.subscribers = nil
}
