package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestSubscribers(t *testing.T) {
	m := newManager(t)
	spec := shell("read line; echo $line; read line; echo $line")
	tag := "mine"
	spec.Stdin, spec.Tag = true, &tag
	_, first := start(t, m, spec)
	p, err := m.Find(Selector{Tag: &tag})
	if err != nil {
		t.Fatal(err)
	}
	second := p.Subscribe()
	defer second.Close()
	if err := p.WriteStdin(t.Context(), []byte("one\n")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []*Subscription{first, second} {
		if ev, err := sub.Next(t.Context(), patience); err != nil || string(ev.Data) != "one\n" {
			t.Fatalf("%+v, %v", ev, err)
		}
	}
	third := p.Subscribe() // gets nothing of what was before
	defer third.Close()
	second.Close()
	if err := p.WriteStdin(t.Context(), []byte("two\n")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []*Subscription{first, third} {
		if r := collect(t, sub); r.stdout.String() != "two\n" || r.end.ExitCode != 0 {
			t.Errorf("%q, %+v", &r.stdout, r.end)
		}
	}
	late := p.Subscribe()
	defer late.Close()
	if r := collect(t, late); r.end.Status != "exit status 0" || r.stdout.Len() > 0 {
		t.Errorf("a late subscriber got %q, %+v", &r.stdout, r.end)
	}
}

// 256 events fit, however small; what comes then waits.
func TestSubscriptionHolds256Events(t *testing.T) {
	const room = 256
	sub := newSubscription(func(*Subscription) {})
	defer sub.Close()
	for i := range room {
		if accepted, _ := sub.offer(Event{Kind: Stdout, Data: []byte("x")}); !accepted {
			t.Fatalf("there is no room for event %d", i+1)
		}
	}
	if accepted, _ := sub.offer(Event{Kind: Stdout, Data: []byte("x")}); accepted {
		t.Errorf("there is room for more than %d events", room)
	}
}

func TestSlowReaderSlowsTheProcessAndLosesNothing(t *testing.T) {
	m := newManager(t)
	dir := t.TempDir()
	const size = 16 << 20
	_, sub := start(t, m, shell(fmt.Sprintf("head -c %d /dev/zero; echo > %s/written", size, dir)))
	eventually(t, "the queue is full", func() bool {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		return !sub.fits(Event{Data: make([]byte, largeBuffer)})
	})
	if _, err := os.Stat(dir + "/written"); err == nil {
		t.Fatal("the process wrote everything though nobody reads")
	}
	sub.mu.Lock()
	if len(sub.pending) > maxPendingEvents || sub.bytes > maxPendingBytes {
		t.Errorf("%d events, %d bytes are waiting", len(sub.pending), sub.bytes)
	}
	sub.mu.Unlock()
	if r := collect(t, sub); r.stdout.Len() != size || r.end.ExitCode != 0 {
		t.Errorf("%d of %d bytes, %+v", r.stdout.Len(), size, r.end)
	}
}

func TestGoneReaderDoesNotHoldTheProcess(t *testing.T) {
	m := newManager(t)
	p, sub := start(t, m, shell("head -c 8000000 /dev/zero"))
	other := p.Subscribe()
	defer other.Close()
	sub.Close()
	if r := collect(t, other); r.end.ExitCode != 0 {
		t.Errorf("end %+v", r.end)
	}
}

func TestStalledReaderIsCutOff(t *testing.T) {
	m := newManager(t)
	spec := shell("read go; head -c 16000000 /dev/zero")
	spec.Stdin = true
	p, other := start(t, m, spec)
	other.Close()
	sub := newSubscription(p.output.forget)
	sub.stall = 50 * time.Millisecond
	p.output.mu.Lock()
	p.output.subscribers[sub] = struct{}{}
	p.output.mu.Unlock()
	if err := p.WriteStdin(t.Context(), []byte("go\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process ends", func() bool { return errors.Is(unix.Kill(p.pid, 0), unix.ESRCH) })
	for {
		ev, err := sub.Next(t.Context(), patience)
		if err != nil {
			if !fault.Is(err, fault.RateLimited) || !strings.Contains(fault.MessageOf(err), "not read for 50ms") {
				t.Errorf("the stalled reader is told %v", err)
			}
			return
		}
		if ev.Kind == Ended || ev.Kind == Idle {
			t.Fatalf("the stalled reader got %+v", ev)
		}
	}
}

// A reader that takes a little, but never all that there is, holds up the others for a
// bounded time in all, however often it takes something.
func TestSlowReaderOfASharedTerminalIsCutOff(t *testing.T) {
	const bound = 300 * time.Millisecond
	m := newManager(t)
	p, sub := start(t, m, terminal("stty raw -echo; echo ready; read go; yes | head -c 30000000"))
	s := &screen{sub: sub}
	s.waitFor(t, "ready")
	slow := p.Subscribe()
	defer slow.Close()
	slow.shared = bound
	typeIn(t, p, "go\n")
	left := make(chan struct{})
	go func() {
		defer close(left)
		tick := time.NewTicker(bound / 10)
		defer tick.Stop()
		for {
			ev, err := slow.Next(context.Background(), 0)
			if ev.Release(); err != nil || ev.Kind == Ended {
				return
			}
			<-tick.C
		}
	}()
	if r := collect(t, sub); r.terminal.Len() < 30000000 || r.end.ExitCode != 0 {
		t.Errorf("%d bytes, %+v", r.terminal.Len(), r.end)
	}
	slow.mu.Lock()
	cut := slow.over
	slow.mu.Unlock()
	if !fault.Is(cut, fault.RateLimited) || !strings.Contains(fault.MessageOf(cut), "others waited 300ms") {
		t.Errorf("the slow reader is told %v", cut)
	}
	slow.Close()
	select {
	case <-left:
	case <-time.After(patience):
		t.Error("a subscription that was closed goes on")
	}
}

// Who comes back to a process while its old connection hangs, and holds the output up, does
// not wait for that one as long as the process would alone.
func TestComingBackBesideAStalledReader(t *testing.T) {
	var out output
	publish := func() { out.publish(Stdout, newBuffer(largeBuffers), largeBuffer) }
	hung := out.subscribe(func(*Subscription, *scrollback) {})
	defer hung.Close()
	hung.shared = 50 * time.Millisecond
	for range maxPendingBytes / largeBuffer {
		publish()
	}
	published := make(chan struct{})
	go func() {
		defer close(published)
		publish()
	}()
	eventually(t, "the output waits for room", func() bool { return len(hung.room) == 0 })
	back := out.subscribe(func(*Subscription, *scrollback) {})
	defer back.Close()
	select {
	case <-published:
	case <-time.After(patience):
		t.Fatalf("the output still waits after %v", patience)
	}
	hung.mu.Lock()
	cut := hung.over
	hung.mu.Unlock()
	if !fault.Is(cut, fault.RateLimited) || !strings.Contains(fault.MessageOf(cut), "others waited 50ms") {
		t.Errorf("the one that hung is told %v", cut)
	}
	publish()
	if ev, err := back.Next(t.Context(), patience); err != nil || ev.Kind != Stdout {
		t.Errorf("who came back got %v, %v", ev.Kind, err)
	}
}

// Who is slow alone is waited for: nobody else is kept from anything.
func TestSlowReaderOfItsOwnIsWaitedFor(t *testing.T) {
	m := newManager(t)
	spec := shell("read go; head -c 4000000 /dev/zero")
	spec.Stdin = true
	p, sub := start(t, m, spec)
	sub.shared = time.Millisecond
	if err := p.WriteStdin(t.Context(), []byte("go\n")); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for total := 0; ; <-tick.C {
		ev, err := sub.Next(t.Context(), 0)
		if err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		total += len(ev.Data)
		ev.Release()
		if ev.Kind == Ended {
			if total != 4000000 {
				t.Errorf("%d bytes", total)
			}
			return
		}
	}
}

func TestIdle(t *testing.T) {
	m := newManager(t)
	_, sub := start(t, m, shell("sleep 60"))
	if ev, err := sub.Next(t.Context(), 10*time.Millisecond); err != nil || ev.Kind != Idle {
		t.Errorf("%+v, %v", ev, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sub.Next(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
