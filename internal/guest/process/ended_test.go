package process

import (
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestEndIsKnownForAWhile(t *testing.T) {
	m := newManager(t)
	tag := "job"
	spec := shell("echo said; exit 6")
	spec.Tag = &tag
	p, sub := start(t, m, spec)
	collect(t, sub)
	byPID, byTag := Selector{PID: p.PID()}, Selector{Tag: &tag}
	for step := range forgetSteps {
		if step > 0 {
			m.forgetOnce()
		}
		for _, sel := range []Selector{byPID, byTag} {
			found, err := m.FindRecent(sel)
			if err != nil || found != p {
				t.Fatalf("after %v: %v, %v", time.Duration(step)*forgetStep, found, err)
			}
			if _, err := m.Find(sel); !fault.Is(err, fault.NotFound) {
				t.Fatalf("it counts as running: %v", err)
			}
		}
		late, replay := p.Subscribe(), p.Replay()
		if r := collect(t, late); r.end.ExitCode != 6 || r.stdout.Len() > 0 {
			t.Errorf("late: %q, %+v", &r.stdout, r.end)
		}
		if r := collect(t, replay); r.end.ExitCode != 6 || r.stdout.String() != "said\n" {
			t.Errorf("late with replay: %q, %+v", &r.stdout, r.end)
		}
		late.Close()
		replay.Close()
	}
	spec = shell("sleep 60")
	spec.Tag = &tag
	running, _ := start(t, m, spec)
	if found, err := m.FindRecent(byTag); err != nil || found != running {
		t.Errorf("one that runs comes first: %v, %v", found, err)
	}
	if !m.forgetOnce() || len(m.ended) > 0 || m.endedKept != 0 {
		t.Errorf("still known: %d with %d bytes", len(m.ended), m.endedKept)
	}
	if _, err := m.FindRecent(byPID); !fault.Is(err, fault.NotFound) {
		t.Errorf("forgotten: %v", err)
	}
}

func TestKeptOutputOfEndedProcessesIsBounded(t *testing.T) {
	m := newManager(t)
	const many = maxEndedKept/maxKept + 3
	var all []*Process
	for range many {
		p, sub := start(t, m, shell("head -c 400000 /dev/zero"))
		collect(t, sub)
		all = append(all, p)
	}
	eventually(t, "all are counted", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.endedKept > 0 && m.ended[many-1].kept > 0 && m.endedKept <= maxEndedKept
	})
	for i, want := range map[int]int{0: 0, many - 1: maxKept} {
		sub := all[i].Replay()
		if r := collect(t, sub); r.stdout.Len() != want || r.end.Status != "exit status 0" {
			t.Errorf("process %d keeps %d bytes, want %d; %+v", i, r.stdout.Len(), want, r.end)
		}
		sub.Close()
		sub = all[i].ReplayFrom(Position{})
		if at, ok := sub.Begins(); !ok || at.Stdout != int64(400_000-want) {
			t.Errorf("of process %d what is kept begins at %+v", i, at)
		}
		sub.Close()
	}
}

func TestCountdownDoesNotCountAPause(t *testing.T) {
	var c countdown
	c.start(10 * time.Second)
	defer c.stop()
	c.begun = c.begun.Add(-time.Hour) // the clock jumped
	if c.over() || c.left < 8*time.Second {
		t.Errorf("an hour's pause leaves %v of 10 s", c.left)
	}
	c.begun = c.begun.Add(-1500 * time.Millisecond)
	if c.over() || c.left > 8500*time.Millisecond {
		t.Errorf("a late timer's time does not count: %v left", c.left)
	}
	var short countdown
	short.start(200 * time.Millisecond)
	defer short.stop()
	short.begun = short.begun.Add(-time.Hour)
	if short.over() {
		t.Error("a short limit does not survive a pause")
	}
	began := time.Now()
	for over := false; !over; {
		select {
		case <-short.timer.C:
			over = short.over()
		case <-time.After(patience):
			t.Fatal("it never ends")
		}
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("it took %v more", took)
	}
}
