package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
)

// guestGroup is the cgroup inside a sandbox that the guest daemon keeps all that it starts
// in, and whose limit on tasks is the guest's.
const guestGroup = "/user"

const (
	// A guest that has had this little of the processors since it was asked has hardly
	// started anything: a process costs it some milliseconds. That, and only so seldom, makes
	// the asking of those that do nothing cost nothing.
	taskWork = 30 * time.Millisecond
	taskAge  = 30 * time.Second
	// taskTime bounds how long a sentry is waited for. One that is at the end of its quota
	// takes some tenths of a second.
	taskTime = 5 * time.Second
)

// tasks is how many tasks a guest has, and may have; zero when nobody knows.
type tasks struct{ now, limit int }

// taskCount remembers the tasks of a guest for as long as they cannot have changed much. The
// zero value is ready, and safe for concurrent use.
type taskCount struct {
	mu     sync.Mutex
	known  tasks
	cpu    time.Duration // that the sandbox had had when it was asked
	next   time.Time     // when to ask at the latest
	asking bool
}

// count returns the tasks of a guest that has had so much of the processors. When they may
// have changed it has them asked for, and does not wait: whoever measures this sandbox
// measures all others too.
func (c *taskCount) count(cpu time.Duration, ask func() (tasks, error), background *sync.WaitGroup) tasks {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); !c.asking && (!now.Before(c.next) || cpu >= c.cpu+taskWork) {
		c.asking, c.cpu, c.next = true, cpu, now.Add(taskAge)
		background.Go(func() { c.learn(ask()) })
	}
	return c.known
}

// learn takes an answer.
func (c *taskCount) learn(got tasks, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asking = false
	var said sentryError
	switch {
	case err == nil:
		c.known = got
	case errors.As(err, &said):
		c.known = tasks{} // the guest's root has removed the cgroup, or its limit
	default:
		c.next = time.Time{} // frozen, ended or busy: they are as they were
	}
}

var errFrozen = errors.New("the sandbox is frozen")

// guestTasks asks a sentry for the tasks of its guest.
func (d *Driver) guestTasks(id string) (got tasks, err error) {
	if _, err := os.Stat(d.freezeMark(id)); !errors.Is(err, fs.ErrNotExist) {
		return got, errFrozen // it would answer when its checkpoint is written
	}
	c, err := d.dial(id)
	if err != nil {
		return got, err
	}
	defer c.close()
	type file struct {
		Controller string `json:"controller"`
		Path       string `json:"path"`
		Name       string `json:"name"`
	}
	type arg struct {
		File file `json:"file"`
	}
	var answer struct {
		Results []struct {
			Value   string `json:"value"`
			IsError bool   `json:"is_error"`
		} `json:"results"`
	}
	question := map[string]any{"args": []arg{{file{"pids", guestGroup, "pids.current"}}, {file{"pids", guestGroup, "pids.max"}}}}
	if err := c.call(callCgroups, question, &answer, nil, taskTime); err != nil {
		return got, err
	}
	values := make([]int, 0, len(answer.Results))
	for _, r := range answer.Results {
		if r.IsError {
			return got, sentryError(r.Value)
		}
		n, err := strconv.Atoi(r.Value)
		if err != nil {
			return got, sentryError("no limit: " + r.Value)
		}
		values = append(values, n)
	}
	const asked = 2
	if len(values) != asked {
		return got, fmt.Errorf("%s: %d answers to %d questions", callCgroups, len(values), asked)
	}
	return tasks{now: values[0], limit: values[1]}, nil
}
