package sandbox

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// quiet makes a sandbox and a service whose watch runs.
func quiet(t *testing.T, o Options) (*Service, *memStore, *fakeHost, Sandbox) {
	t.Helper()
	s, store, host := newTest(t)
	run(t, s)
	eventually(t, "somebody listens", func() bool { host.mu.Lock(); defer host.mu.Unlock(); return len(host.watchers) > 0 })
	sb, err := s.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s, store, host, sb
}

func TestPauseAndResume(t *testing.T) {
	s, store, _, sb := quiet(t, Options{Timeout: time.Hour, Deadline: time.Hour, Metadata: map[string]string{"k": "v"}})
	for range 3 {
		got, err := s.Pause(t.Context(), sb.ID)
		if err != nil || got.Status != Paused || got.PausedAt.IsZero() || got.SnapshotBytes != 77 || !got.EndsAt().IsZero() {
			t.Fatalf("paused: %+v, %v", got, err)
		}
		if _, err := s.Pause(t.Context(), sb.ID); !fault.Is(err, fault.InvalidState) || !strings.Contains(err.Error(), "paused") {
			t.Errorf("a second pause: %v", err)
		}
		if err := s.Ping(t.Context(), sb.ID); !fault.Is(err, fault.InvalidState) || !strings.Contains(err.Error(), "resume it first") {
			t.Errorf("ping of a paused sandbox: %v", err)
		}
		asleep := now()
		got, err = s.Resume(t.Context(), sb.ID, 0)
		if err != nil || got.Status != Running || got.HostIP != "10.0.0.9" || got.Reason != "" {
			t.Fatalf("resumed: %+v, %v", got, err)
		}
		// Both clocks begin anew: nobody may see a resume that pauses at once.
		if left := got.EndsAt().Sub(asleep); left < time.Hour {
			t.Errorf("after the resume %v are left", left)
		}
		if _, err := s.Resume(t.Context(), sb.ID, 0); !fault.Is(err, fault.InvalidState) {
			t.Errorf("a second resume: %v", err)
		}
	}
	if row := store.row(sb.ID); row.Metadata["k"] != "v" || row.Timeout != time.Hour {
		t.Errorf("what the user said was lost: %+v", row)
	}
	if _, err := s.Pause(t.Context(), "sbnone"); !fault.Is(err, fault.NotFound) {
		t.Errorf("pause of an unknown sandbox: %v", err)
	}
	if _, err := s.Resume(t.Context(), sb.ID, -time.Second); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a negative wait: %v", err)
	}
}

func TestFailedPauseAndResume(t *testing.T) {
	s, store, host, sb := quiet(t, Options{})
	full := fault.New(fault.NoSpace, "the disk is full")
	host.onPause = func(string) error { return full }
	if _, err := s.Pause(t.Context(), sb.ID); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if row := store.row(sb.ID); row.Status != Running || !strings.Contains(row.Reason, "disk is full") {
		t.Errorf("after a pause that failed: %+v", row)
	}
	if err := s.Ping(t.Context(), sb.ID); err != nil {
		t.Errorf("after a pause that failed: %v", err)
	}
	host.onPause = nil
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	host.onResume = func(string) error { return full }
	if _, err := s.Resume(t.Context(), sb.ID, 0); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if row := store.row(sb.ID); row.Status != Paused || row.PausedAt.IsZero() {
		t.Errorf("after a resume that failed: %+v", row)
	}
	host.onResume = nil
	if _, err := s.Resume(t.Context(), sb.ID, 0); err != nil {
		t.Error(err)
	}
}

func TestErrorWithAStateCanBeResumed(t *testing.T) {
	s, store, host, sb := quiet(t, Options{})
	host.set(HostSandbox{ID: sb.ID, Status: Error, Reason: "its kernel died", PausedAt: now(), SnapshotBytes: 5})
	eventually(t, "the news is written", func() bool { r := store.row(sb.ID); return r.Status == Error && !r.PausedAt.IsZero() })
	if got, err := s.Resume(t.Context(), sb.ID, 0); err != nil || got.Status != Running {
		t.Errorf("%+v, %v", got, err)
	}
	host.set(HostSandbox{ID: sb.ID, Status: Error, Reason: "its kernel died"})
	eventually(t, "the news is written", func() bool { return store.row(sb.ID).Status == Error })
	if _, err := s.Resume(t.Context(), sb.ID, 0); !fault.Is(err, fault.InvalidState) {
		t.Errorf("without a state to go back to: %v", err)
	}
}

func TestDeleteWhilePausing(t *testing.T) {
	s, store, host, sb := quiet(t, Options{})
	host.onPause = func(id string) error {
		if err := s.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
		return fault.New(fault.InvalidState, "it was destroyed")
	}
	if _, err := s.Pause(t.Context(), sb.ID); err == nil {
		t.Error("a pause of what was deleted succeeded")
	}
	if store.row(sb.ID).ID != "" {
		t.Errorf("%+v is left", store.row(sb.ID))
	}
}

func TestTwoPausesAtOnce(t *testing.T) {
	s, _, host, sb := quiet(t, Options{})
	pausing, goOn := make(chan struct{}), make(chan struct{})
	host.onPause = func(string) error { close(pausing); <-goOn; return nil }
	first := make(chan error, 1)
	go func() { _, err := s.Pause(t.Context(), sb.ID); first <- err }()
	<-pausing
	if _, err := s.Pause(t.Context(), sb.ID); !fault.Is(err, fault.InvalidState) || !strings.Contains(err.Error(), "pausing") {
		t.Errorf("the second: %v", err)
	}
	if _, err := s.Resume(t.Context(), sb.ID, 0); !fault.Is(err, fault.InvalidState) {
		t.Errorf("a resume meanwhile: %v", err)
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Errorf("the first: %v", err)
	}
}

// What dies while it is resumed is not taken for running: the news that came meanwhile is
// older or newer than the answer, and the host is asked.
func TestDiesWhileResumed(t *testing.T) {
	s, store, host, sb := quiet(t, Options{})
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	host.onResume = func(id string) error {
		host.set(HostSandbox{ID: id, Status: Error, Reason: "boom"})
		return fault.New(fault.AgentError, "boom")
	}
	if _, err := s.Resume(t.Context(), sb.ID, 0); err == nil {
		t.Error("no error")
	}
	eventually(t, "the host's word counts", func() bool { return store.row(sb.ID).Status == Paused })
}

func TestPauseWaitsForRequestsAndNotForCommands(t *testing.T) {
	s, _, host, sb := quiet(t, Options{})
	upload, err := s.use(t.Context(), sb.ID, request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.use(t.Context(), sb.ID, command); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var after time.Duration
	host.onPause = func(string) error { after = time.Since(began); return nil }
	done := make(chan error, 1)
	go func() { _, err := s.Pause(t.Context(), sb.ID); done <- err }()
	eventually(t, "nobody comes in any more", func() bool {
		end, err := s.use(t.Context(), sb.ID, request)
		if err == nil {
			end()
		}
		return fault.Is(err, fault.InvalidState)
	})
	const held = 200 * time.Millisecond
	time.AfterFunc(held, upload)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if after < held || after > drainTime {
		t.Errorf("the pause began after %v; the request ended after %v", after, held)
	}
	if _, err := s.Resume(t.Context(), sb.ID, 0); err != nil {
		t.Fatal(err)
	}
	stuck, err := s.use(t.Context(), sb.ID, request)
	if err != nil {
		t.Fatal("a resumed sandbox is still sealed:", err)
	}
	defer stuck()
	began = time.Now()
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if after < drainTime || after > drainTime+time.Second {
		t.Errorf("a request that does not end held the pause up for %v", after)
	}
}

func TestStreamsOfAPausedSandbox(t *testing.T) {
	s, _, host, sb := quiet(t, Options{})
	broken := make(chan struct{})
	host.onStart = func(Command) (EventStream, error) { return brokenStream{broken}, nil }
	session, err := s.Processes().Open(t.Context(), sb.ID, Command{Cmd: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	host.onPause = func(string) error { close(broken); return nil }
	said := make(chan error, 1)
	go func() { _, err := session.Next(); said <- err }()
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-said; !errors.Is(err, ErrPaused) || !strings.Contains(fault.MessageOf(err), "resume it") {
		t.Errorf("the stream ended with %v", err)
	}
}

// brokenStream has no event and ends when it is broken.
type brokenStream struct{ broken <-chan struct{} }

func (b brokenStream) Next() (Event, error) { <-b.broken; return Event{}, io.EOF }
func (b brokenStream) Close() error         { return nil }

func TestSetTimeouts(t *testing.T) {
	s, store, host, sb := quiet(t, Options{Timeout: time.Hour, Deadline: time.Hour, OnTimeout: Kill})
	minute, none := time.Minute, time.Duration(0)
	got, err := s.SetTimeouts(t.Context(), sb.ID, Timeouts{Deadline: &minute})
	if left := time.Until(got.EndsAt()); err != nil || left > time.Minute || left < 50*time.Second || got.Timeout != time.Hour || got.OnTimeout != Kill {
		t.Errorf("%+v, %v", got, err)
	}
	// Anything but this only ever extends.
	if err := s.Ping(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if after, err := s.Get(t.Context(), sb.ID); err != nil || after.EndsAt().Before(got.EndsAt()) {
		t.Errorf("a ping shortened it: %v, %v", after.EndsAt(), err)
	}
	got, err = s.SetTimeouts(t.Context(), sb.ID, Timeouts{Deadline: &none, Timeout: &none, OnTimeout: Pause})
	if err != nil || !got.EndsAt().IsZero() || got.OnTimeout != Pause {
		t.Errorf("%+v, %v", got, err)
	}
	bad := -time.Second
	if _, err := s.SetTimeouts(t.Context(), sb.ID, Timeouts{Timeout: &bad}); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("%v", err)
	}
	if _, err := s.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if got, err = s.SetTimeouts(t.Context(), sb.ID, Timeouts{Deadline: &minute}); err != nil || !got.EndsAt().IsZero() {
		t.Errorf("while paused: %+v, %v", got, err)
	}
	host.set(HostSandbox{ID: sb.ID, Status: Stopped})
	eventually(t, "its end is known", func() bool { return store.row(sb.ID).Status == Stopped })
	if _, err := s.SetTimeouts(t.Context(), sb.ID, Timeouts{Timeout: &minute}); !fault.Is(err, fault.InvalidState) {
		t.Errorf("of one that has ended: %v", err)
	}
}
