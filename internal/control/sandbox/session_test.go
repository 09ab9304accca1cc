package sandbox

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestTerminalDefaults(t *testing.T) {
	s, store, host := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running})
	var cmd Command
	host.onStart = func(c Command) (EventStream, error) { cmd = c; return &script{}, nil }
	session, err := s.Processes().Open(t.Context(), "sb1", Command{Terminal: &TerminalSize{}, Env: map[string]string{"LANG": "de_DE.UTF-8"}})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if cmd.Cmd != "" || *cmd.Terminal != (TerminalSize{Cols: 80, Rows: 24}) ||
		cmd.Env["TERM"] != "xterm-256color" || cmd.Env["LANG"] != "de_DE.UTF-8" || !strings.HasPrefix(cmd.Tag, "pty-") {
		t.Errorf("started %+v", cmd)
	}
	if err := session.Write(t.Context(), []byte("ls\r")); err != nil {
		t.Error(err)
	}
	if err := session.Resize(t.Context(), TerminalSize{Cols: 9, Rows: 8}); err != nil {
		t.Error(err)
	}
	if got := []string{<-host.inputs, <-host.inputs}; !slices.Equal(got, []string{"terminal:ls\r", "size:9x8"}) {
		t.Errorf("the host got %q", got)
	}
	if _, err := s.Processes().Open(t.Context(), "sb1", Command{Terminal: &TerminalSize{}, Args: []string{"x"}}); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("arguments for nobody: %v", err)
	}
}

func TestConnect(t *testing.T) {
	s, store, host := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running})
	host.onConnect = func(f Follow) (EventStream, error) {
		if f != (Follow{Process: Selector{Tag: "web"}, Replay: true}) {
			t.Errorf("connected to %+v", f)
		}
		return &script{events: []Event{{Kind: Exited, Exit: Exit{Code: 3}}}}, nil
	}
	session, err := s.Processes().Connect(t.Context(), "sb1", Follow{Process: Selector{Tag: "web"}, Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	if session.Started() != (Started{PID: 8, Tag: "web", ReplayBytes: 9}) || s.activity.busy("sb1") {
		t.Errorf("%+v, busy %v", session.Started(), s.activity.busy("sb1"))
	}
	if ev, err := session.Next(); err != nil || ev.Exit.Code != 3 {
		t.Errorf("%+v %v", ev, err)
	}
	if err := session.Close(); err != nil || s.activity.busy("sb1") {
		t.Errorf("still in use, or %v", err)
	}
	host.onConnect = func(Follow) (EventStream, error) { return nil, fault.New(fault.NotFound, "no such process") }
	if _, err := s.Processes().Connect(t.Context(), "sb1", Follow{}); !fault.Is(err, fault.NotFound) || s.activity.busy("sb1") {
		t.Errorf("%v, busy %v", err, s.activity.busy("sb1"))
	}
}

// breaks is a stream that breaks off.
type breaks struct {
	before func()
	err    error
}

func (b breaks) Next() (Event, error) { b.before(); return Event{}, b.err }
func (b breaks) Close() error         { return nil }

// A stream that breaks off says what became of the sandbox.
func TestLostStreamSaysWhy(t *testing.T) {
	gone := fault.New(fault.AgentError, "the sandbox does not answer")
	for name, tt := range map[string]struct {
		before func(*memStore)
		err    error
		code   fault.Code
		says   string
	}{
		"deleted":       {func(m *memStore) { _, _ = m.Delete(t.Context(), "sb1") }, gone, fault.NotFound, "was deleted"},
		"being deleted": {func(m *memStore) { m.put(Sandbox{ID: "sb1", Status: Stopping}) }, gone, fault.NotFound, "was deleted"},
		"ended":         {func(m *memStore) { m.put(Sandbox{ID: "sb1", Status: Error, Reason: "out of memory"}) }, gone, fault.InvalidState, "out of memory"},
		"out of time":   {func(m *memStore) { m.put(Sandbox{ID: "sb1", Status: Stopping, Reason: "idle"}) }, io.EOF, fault.InvalidState, "idle"},
		"nobody knows":  {func(*memStore) {}, io.EOF, fault.AgentError, "went away"},
		"its own word":  {func(m *memStore) { _, _ = m.Delete(t.Context(), "sb1") }, fault.New(fault.RateLimited, "not read"), fault.RateLimited, "not read"},
	} {
		s, store, host := newTest(t)
		store.put(Sandbox{ID: "sb1", Status: Running})
		host.onStart = func(Command) (EventStream, error) {
			return breaks{func() { tt.before(store) }, tt.err}, nil
		}
		session, err := s.Processes().Open(t.Context(), "sb1", Command{Cmd: "c"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = session.Next(); !fault.Is(err, tt.code) || !strings.Contains(fault.MessageOf(err), tt.says) || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", name, err)
		}
		_ = session.Close()
	}
}

// The end of a host that is about to go is no news.
func TestExpectedEndOfTheHost(t *testing.T) {
	s, store, host := newTest(t)
	done := make(chan struct{})
	go func() { defer close(done); s.watch(t.Context()) }()
	eventually(t, "watched", func() bool { host.mu.Lock(); defer host.mu.Unlock(); return len(host.watchers) == 1 })
	s.ExpectHostGone()
	store.put(Sandbox{ID: "sb1", Status: Running})
	host.set(HostSandbox{ID: "sb1", Status: Stopped, Reason: "the host agent was stopped"})
	eventually(t, "still followed", func() bool { return store.row("sb1").Status == Stopped })
	host.restart()
	eventually(t, "no more watching", func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
}
