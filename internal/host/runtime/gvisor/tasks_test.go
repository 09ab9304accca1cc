package gvisor

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A guest is asked when its tasks may have changed, and nobody waits for the answer.
func TestWhenTasksAreAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c taskCount
		var work sync.WaitGroup
		var cpu time.Duration
		asked := 0
		answer := func() (tasks, error) { return tasks{asked, 64}, nil }
		count := func() tasks {
			got := c.count(cpu, func() (tasks, error) {
				asked++
				<-time.After(time.Second)
				return answer()
			}, &work)
			return got
		}
		expect := func(what string, times int, want tasks) {
			t.Helper()
			before := asked
			count()
			work.Wait()
			if got := count(); got != want {
				t.Errorf("%s: %+v, want %+v", what, got, want)
			}
			work.Wait()
			if asked-before != times {
				t.Errorf("%s: asked %d times, want %d", what, asked-before, times)
			}
		}
		began := time.Now()
		if got := count(); got != (tasks{}) || time.Since(began) != 0 {
			t.Errorf("before the first answer: %+v after %v", got, time.Since(began))
		}
		count() // while it is under way
		work.Wait()
		expect("does nothing", 0, tasks{1, 64})
		cpu += taskWork
		expect("works", 1, tasks{2, 64})
		<-time.After(taskAge)
		expect("does nothing for long", 1, tasks{3, 64})
		answer = func() (tasks, error) { return tasks{}, errFrozen }
		cpu += taskWork
		expect("stands still", 2, tasks{3, 64}) // it is asked again, every time
		answer = func() (tasks, error) { return tasks{}, sentryError("no such cgroup") }
		expect("has no limit", 1, tasks{})
		answer = func() (tasks, error) { return tasks{}, errors.New("no answer") }
		expect("has no limit yet", 0, tasks{})
	})
}
