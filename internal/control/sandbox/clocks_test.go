package sandbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// mutedProcesses is the processes of a host on which one guest does not answer.
type mutedProcesses struct {
	HostProcesses
	mute string
}

func (p mutedProcesses) List(ctx context.Context, id string) ([]Process, error) {
	if id == p.mute {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return p.HostProcesses.List(ctx, id)
}

func TestAMuteGuestHoldsUpNoOther(t *testing.T) {
	s, store, _ := newTest(t)
	mute, err := s.Create(t.Context(), Options{Timeout: time.Nanosecond, OnTimeout: Kill})
	if err != nil {
		t.Fatal(err)
	}
	s.processes = mutedProcesses{s.processes, mute.ID}
	run(t, s)
	other, err := s.Create(t.Context(), Options{Deadline: 300 * time.Millisecond, OnTimeout: Kill})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "the other's deadline ends it", func() bool { return store.row(other.ID).Status == Stopped })
	if took := time.Since(began); took > probeTime/2 {
		t.Errorf("it took %v: the clocks wait for the mute guest", took)
	}
}

func TestAGuestThatNeverAnswersIsAtRestInTheEnd(t *testing.T) {
	s, store, _ := newTest(t)
	c := newClocks(s)
	sb, err := s.Create(t.Context(), Options{Timeout: time.Nanosecond, OnTimeout: Kill})
	if err != nil {
		t.Fatal(err)
	}
	silent := errors.New("silence")
	w := &lateWatch{}
	for range muteProbes - 1 {
		if c.judge(w, sb, 0, silent) {
			t.Fatal("a guest that did not answer a few times is taken for idle")
		}
	}
	if !c.judge(w, sb, 0, silent) {
		t.Error("a guest that never answers lives for ever")
	}
	w.mute = 0
	c.pass(t.Context())
	c.work.Wait()
	if row := store.row(sb.ID); row.Status != Stopped || !strings.Contains(row.Reason, "idle") {
		t.Errorf("an idle sandbox is %s (%s)", row.Status, row.Reason)
	}
}

// unpausable returns clocks, whose time the test makes pass, over a sandbox that the host
// cannot pause. tries is how often it was asked to.
func unpausable(t *testing.T, o Options, why error) (c *clocks, store *memStore, sb Sandbox, pass func(time.Duration) (tries int)) {
	t.Helper()
	s, store, host := newTest(t)
	sb, err := s.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	host.onPause = func(string) error { tries++; return why }
	c = newClocks(s)
	var passed time.Duration
	c.now = func() time.Time { return now().Add(passed) }
	s.activity.now = c.now
	return c, store, sb, func(d time.Duration) int {
		passed += d
		tries = 0
		for range 2 { // the second finds nothing to do
			c.pass(t.Context())
			c.work.Wait()
		}
		return tries
	}
}

var unsaveable = fault.New(fault.InvalidState, "something in the sandbox cannot be written down: a tun device")

func TestWhatCannotBePausedIsTriedLessAndLessOften(t *testing.T) {
	for name, o := range map[string]Options{"idle": {Timeout: time.Nanosecond}, "deadline": {Deadline: time.Nanosecond}} {
		c, store, sb, pass := unpausable(t, o, unsaveable)
		if n := pass(0); n != 1 {
			t.Errorf("%s: at first %d tries", name, n)
		}
		for wait := refusedWait; wait < 4*refusedWaitMost; wait *= 2 {
			if n := pass(min(wait, refusedWaitMost) - time.Second); n != 0 {
				t.Errorf("%s: %d tries before %v", name, n, wait)
			}
			if n := pass(2 * time.Second); n != 1 {
				t.Errorf("%s: %d tries after %v", name, n, wait)
			}
		}
		row := store.row(sb.ID)
		if row.Status != Running || !strings.Contains(row.Reason, "a tun device") || !strings.Contains(row.Reason, name) ||
			strings.Contains(row.Reason, "it is ended at") != (name == "deadline") {
			t.Errorf("%s: it is %s (%s)", name, row.Status, row.Reason)
		}
		// Who sets the clocks again wants them to count.
		d := time.Hour
		if _, err := c.SetTimeouts(t.Context(), sb.ID, Timeouts{Deadline: &d}); err != nil || store.row(sb.ID).Reason != "" {
			t.Errorf("%s: %v, its reason is %q", name, err, store.row(sb.ID).Reason)
		}
		if n := pass(2 * time.Hour); n == 0 {
			t.Errorf("%s: no try at the new deadline", name)
		}
	}
}

// Nothing outlives its deadline for ever because of what it does; nothing is ended because
// its host has no room, and nothing for being idle.
func TestWhatCannotBePausedEndsLongAfterItsDeadline(t *testing.T) {
	full := fault.New(fault.NoSpace, "the host's disk is full")
	for name, test := range map[string]struct {
		o    Options
		why  error
		want Status
	}{
		"a deadline, and the guest's doing": {Options{Deadline: time.Nanosecond}, unsaveable, Stopped},
		"a deadline, and the host's":        {Options{Deadline: time.Nanosecond}, full, Running},
		"an idle timeout":                   {Options{Timeout: time.Nanosecond}, unsaveable, Running},
	} {
		_, store, sb, pass := unpausable(t, test.o, test.why)
		pass(0)
		pass(refusedGrace - time.Minute)
		if row := store.row(sb.ID); row.Status != Running {
			t.Errorf("%s: before the time it is %s (%s)", name, row.Status, row.Reason)
		}
		pass(2 * time.Minute)
		if row := store.row(sb.ID); row.Status != test.want || !strings.Contains(row.Reason, fault.MessageOf(test.why)) {
			t.Errorf("%s: it is %s (%s)", name, row.Status, row.Reason)
		}
	}
}

// A guest that could not be paused and was used since is idle anew.
func TestUseMakesUpForAFailedPause(t *testing.T) {
	c, _, sb, pass := unpausable(t, Options{Timeout: time.Second}, unsaveable)
	for range 3 {
		pass(time.Hour)
	}
	if err := c.Ping(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if n := pass(2 * time.Second); n != 1 {
		t.Errorf("%d tries", n)
	}
}

// latecomer is a Store whose rows change right after they were listed.
type latecomer struct {
	Store
	then func()
}

func (s *latecomer) List(ctx context.Context, f Filter) ([]Sandbox, error) {
	found, err := s.Store.List(ctx, f)
	if then := s.then; then != nil {
		s.then = nil
		then()
	}
	return found, err
}

// Who was answered that the deadline is another has it, however late.
func TestAnExtensionIsNotLostToAClockThatHasLooked(t *testing.T) {
	for _, onTimeout := range []OnTimeout{Pause, Kill} {
		s, store, _ := newTest(t)
		c := newClocks(s)
		sb, err := s.Create(t.Context(), Options{Deadline: time.Nanosecond, OnTimeout: onTimeout})
		if err != nil {
			t.Fatal(err)
		}
		hour := time.Hour
		s.store = &latecomer{s.store, func() {
			if _, err := s.SetTimeouts(t.Context(), sb.ID, Timeouts{Deadline: &hour}); err != nil {
				t.Error(err)
			}
		}}
		for range 2 {
			c.pass(t.Context())
			c.work.Wait()
		}
		if row := store.row(sb.ID); row.Status != Running || row.Deadline != hour {
			t.Errorf("%s: it is %s (%s)", onTimeout, row.Status, row.Reason)
		}
	}
}
