package sandbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
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
