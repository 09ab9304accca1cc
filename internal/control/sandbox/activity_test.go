package sandbox

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestWhatIsActivity is the table in docs/architecture.md, line by line: a sandbox whose
// idle timeout has passed, in which this happens, is left alone, or is paused.
func TestWhatIsActivity(t *testing.T) {
	output := func() *script { return &script{events: []Event{{Kind: Terminal, Data: []byte("$ ")}}} }
	for name, tt := range map[string]struct {
		do    func(t *testing.T, s *Service, host *fakeHost, id string)
		awake bool
	}{
		"nothing": {func(*testing.T, *Service, *fakeHost, string) {}, false},
		"a command in the foreground that somebody follows": {func(t *testing.T, s *Service, host *fakeHost, id string) {
			open(t, s, host, id, Command{Cmd: "make"}, &script{})
		}, true},
		"a command in the foreground whose client has gone": {func(_ *testing.T, _ *Service, host *fakeHost, id string) {
			host.setRunning(id, Process{PID: 1})
		}, true},
		"a process in the background": {func(_ *testing.T, _ *Service, host *fakeHost, id string) {
			host.setRunning(id, Process{PID: 1, Background: true})
		}, false},
		"a terminal that is merely open": {func(t *testing.T, s *Service, host *fakeHost, id string) {
			open(t, s, host, id, Command{Terminal: &TerminalSize{}}, output())
			host.setRunning(id, Process{PID: 1, Background: true})
			age(s, id)
		}, false},
		"input of a terminal": {func(t *testing.T, s *Service, host *fakeHost, id string) {
			session := open(t, s, host, id, Command{Terminal: &TerminalSize{}}, output())
			age(s, id)
			if err := session.Write(t.Context(), []byte("ls\r")); err != nil {
				t.Error(err)
			}
		}, true},
		"output of a terminal": {func(t *testing.T, s *Service, host *fakeHost, id string) {
			session := open(t, s, host, id, Command{Terminal: &TerminalSize{}}, output())
			age(s, id)
			if _, err := session.Next(); err != nil {
				t.Error(err)
			}
		}, true},
		"a file on its way": {func(t *testing.T, s *Service, _ *fakeHost, id string) {
			body, feed := io.Pipe()
			t.Cleanup(func() { _ = feed.Close() })
			s.files = fakeFiles{content: body}
			c, err := s.Files().Read(t.Context(), id, "", "/f")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			age(s, id)
		}, true},
		"a ping": {func(t *testing.T, s *Service, _ *fakeHost, id string) {
			if err := s.Ping(t.Context(), id); err != nil {
				t.Error(err)
			}
		}, true},
		"a timeout that is set": {func(t *testing.T, s *Service, _ *fakeHost, id string) {
			hour := time.Hour
			if _, err := s.SetTimeouts(t.Context(), id, Timeouts{Timeout: &hour}); err != nil {
				t.Error(err)
			}
		}, true},
		"reading the API": {func(t *testing.T, s *Service, _ *fakeHost, id string) {
			if _, err := s.Get(t.Context(), id); err != nil {
				t.Error(err)
			}
			if _, err := s.List(t.Context(), Query{}); err != nil {
				t.Error(err)
			}
			if _, err := s.Processes().List(t.Context(), id); err != nil {
				t.Error(err)
			}
			if _, err := s.Metrics(t.Context(), id, time.Minute); err != nil {
				t.Error(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, store, host := newTest(t)
			sb, err := s.Create(t.Context(), Options{Timeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			forget(s, store, sb.ID)
			tt.do(t, s, host, sb.ID)
			c := newClocks(s)
			c.pass(t.Context())
			c.work.Wait()
			row := store.row(sb.ID)
			if tt.awake && row.Status != Running {
				t.Errorf("it is %s (%s)", row.Status, row.Reason)
			}
			if !tt.awake && (row.Status != Paused || !strings.Contains(row.Reason, "idle for its timeout of 60 s")) {
				t.Errorf("it is %s (%s)", row.Status, row.Reason)
			}
		})
	}
}

// open starts a process whose events are a script.
func open(t *testing.T, s *Service, host *fakeHost, id string, cmd Command, events *script) Session {
	t.Helper()
	host.onStart = func(Command) (EventStream, error) { return events, nil }
	session, err := s.Processes().Open(t.Context(), id, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

// age makes what was done in a sandbox so far an hour old.
func age(s *Service, id string) {
	s.activity.mu.Lock()
	defer s.activity.mu.Unlock()
	s.activity.last[id] = now().Add(-time.Hour)
}

// forget makes the row of a sandbox an hour old, and what was done in it.
func forget(s *Service, store *memStore, id string) {
	row := store.row(id)
	row.LastActiveAt = now().Add(-time.Hour)
	store.put(row)
	age(s, id)
}

// A pause by a clock comes within a second of its time, however busy the clocks are else.
func TestAutoPauseIsOnTime(t *testing.T) {
	for name, o := range map[string]Options{
		"idle":     {Timeout: time.Second},
		"deadline": {Deadline: time.Second},
	} {
		s, store, host := newTest(t)
		run(t, s)
		sb, err := s.Create(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if name == "deadline" {
			host.setRunning(sb.ID, Process{PID: 1}) // busy or not
			if _, err := s.use(t.Context(), sb.ID, request); err != nil {
				t.Fatal(err)
			}
		}
		due := sb.EndsAt()
		eventually(t, name+": it is paused", func() bool { return store.row(sb.ID).Status == Paused })
		if late := time.Since(due); late < 0 || late > time.Second {
			t.Errorf("%s: %v after its time", name, late)
		}
		if reason := store.row(sb.ID).Reason; !strings.Contains(reason, name) {
			t.Errorf("%s: its reason is %q", name, reason)
		}
	}
}

// What is done in a sandbox while its guest is asked whether it is idle counts, also when it
// is written to the database before the answer.
func TestActivityDuringTheLookCounts(t *testing.T) {
	s, store, host := newTest(t)
	sb, err := s.Create(t.Context(), Options{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	forget(s, store, sb.ID)
	host.onList = func(id string) {
		if err := errors.Join(s.Ping(t.Context(), id), s.activity.flush(t.Context(), store)); err != nil {
			t.Error(err)
		}
	}
	c := newClocks(s)
	c.pass(t.Context())
	c.work.Wait()
	if row := store.row(sb.ID); row.Status != Running {
		t.Errorf("it is %s (%s)", row.Status, row.Reason)
	}
}

// Nobody could use a sandbox while no server ran.
func TestIdleTimeBeginsWithTheServer(t *testing.T) {
	s, store, _ := newTest(t)
	sb, err := s.Create(t.Context(), Options{Timeout: time.Minute, OnTimeout: Kill})
	if err != nil {
		t.Fatal(err)
	}
	forget(s, store, sb.ID)
	c := newClocks(s)
	c.greet(t.Context())
	c.pass(t.Context())
	c.work.Wait()
	if row := store.row(sb.ID); row.Status != Running {
		t.Errorf("it is %s (%s)", row.Status, row.Reason)
	}
}

// A pause that fails is not tried without end, and does not stop the sandbox.
func TestAutoPauseThatFails(t *testing.T) {
	s, store, host := newTest(t)
	tries := 0
	host.onPause = func(string) error { tries++; return io.ErrShortWrite }
	sb, err := s.Create(t.Context(), Options{Deadline: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	c := newClocks(s)
	for range 5 {
		c.pass(t.Context())
		c.work.Wait()
	}
	if row := store.row(sb.ID); tries != 1 || row.Status != Running || row.Reason == "" {
		t.Errorf("after %d tries it is %s (%s)", tries, row.Status, row.Reason)
	}
	if err := s.Ping(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
}
