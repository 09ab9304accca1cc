package sandbox

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// script is an EventStream that plays events and then, unless it hangs, ends.
type script struct {
	events []Event
	hang   <-chan struct{}
}

func (s *script) Next() (Event, error) {
	if len(s.events) == 0 {
		if s.hang != nil {
			<-s.hang
		}
		return Event{}, io.EOF
	}
	ev := s.events[0]
	s.events = s.events[1:]
	return ev, nil
}

func (s *script) Close() error { return nil }

func TestExec(t *testing.T) {
	s, store, host := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running})
	var cmd Command
	host.onStart = func(c Command) (EventStream, error) {
		cmd = c
		return &script{events: []Event{
			{Kind: Stdout, Data: []byte("a")}, {Kind: Stderr, Data: []byte("b")}, {Kind: Stdout, Data: []byte("c")},
			{Kind: Exited, Exit: Exit{Code: 3}},
		}}, nil
	}
	res, err := s.Processes().Exec(t.Context(), "sb1", Command{Cmd: "c"}, nil)
	if err != nil || string(res.Stdout) != "ac" || string(res.Stderr) != "b" || res.Code != 3 || res.Truncated {
		t.Errorf("%+v %v", res, err)
	}
	if cmd.Stdin || !strings.HasPrefix(cmd.Tag, "cmd-") {
		t.Errorf("started %+v", cmd)
	}
	if s.activity.busy("sb1") {
		t.Error("the sandbox is still in use")
	}

	stdin := strings.Repeat("x", stdinChunk+1)
	var got string
	var wg sync.WaitGroup
	wg.Go(func() {
		for chunk := range host.inputs {
			if chunk == "" {
				return
			}
			got += chunk
		}
	})
	host.onStart = func(c Command) (EventStream, error) {
		cmd = c
		return readsAll{&wg}, nil
	}
	if _, err := s.Processes().Exec(t.Context(), "sb1", Command{Cmd: "c"}, []byte(stdin)); err != nil || got != stdin || !cmd.Stdin {
		t.Errorf("%d of %d bytes of stdin, %v", len(got), len(stdin), err)
	}

	started, err := s.Processes().Background(t.Context(), "sb1", Command{Cmd: "c", Tag: "web"})
	if err != nil || started.PID != 7 || started.Tag != "web" || s.activity.busy("sb1") {
		t.Errorf("%+v %v", started, err)
	}
}

// readsAll is a process that ends when it has read its stdin to the end.
type readsAll struct{ read *sync.WaitGroup }

func (r readsAll) Next() (Event, error) { r.read.Wait(); return Event{Kind: Exited}, nil }
func (r readsAll) Close() error         { return nil }

func TestExecEndsBadly(t *testing.T) {
	s, store, host := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running})
	host.onStart = func(Command) (EventStream, error) { return &script{}, nil }
	if _, err := s.Processes().Exec(t.Context(), "sb1", Command{Cmd: "c"}, nil); !fault.Is(err, fault.AgentError) {
		t.Errorf("a stream without an exit: %v", err)
	}
	host.onStart = func(Command) (EventStream, error) { return nil, fault.New(fault.InvalidRequest, "no such command") }
	if _, err := s.Processes().Exec(t.Context(), "sb1", Command{Cmd: "c"}, nil); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a command that cannot start: %v", err)
	}
	if s.activity.busy("sb1") {
		t.Error("the sandbox is still in use")
	}
	for _, bad := range []Command{
		{}, {Cmd: "a\x00"}, {Cmd: "a", Args: []string{"\x00"}}, {Cmd: strings.Repeat("x", maxArgument)}, {Cmd: "a", Cwd: "\x00"},
		{Cmd: "a", Tag: "12"}, {Cmd: "a", Tag: "."}, {Cmd: "a", Tag: ".."}, {Cmd: "a", Tag: "a b"}, {Cmd: "a", Timeout: -1}, {Cmd: "a", Env: map[string]string{"": "x"}},
	} {
		if _, err := s.Processes().Exec(t.Context(), "sb1", bad, nil); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%.40q: %v", bad.Cmd+bad.Tag, err)
		}
	}
}

func TestExecIsKilledWithItsClient(t *testing.T) {
	for name, when := range map[string]string{"while it runs": "running", "before it has started": "starting"} {
		s, store, host := newTest(t)
		store.put(Sandbox{ID: "sb1", Status: Running})
		ctx, cancel := context.WithCancel(t.Context())
		killed := make(chan struct{})
		host.onStart = func(Command) (EventStream, error) {
			if when == "starting" {
				cancel()
			}
			return hangs{when, cancel, killed}, nil
		}
		go func() {
			defer close(killed)
			if p := <-host.signals; p.PID != 7 {
				t.Errorf("%s: killed %+v", name, p)
			}
		}()
		if _, err := s.Processes().Exec(ctx, "sb1", Command{Cmd: "c"}, nil); !fault.Is(err, fault.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		select {
		case <-killed:
		default:
			t.Errorf("%s: Exec returned before the command was killed", name)
		}
		cancel()
	}
}

// hangs is a process that ends only when it is killed.
type hangs struct {
	when   string
	cancel context.CancelFunc
	killed <-chan struct{}
}

func (h hangs) Next() (Event, error) {
	if h.when == "running" {
		h.cancel()
	}
	<-h.killed
	return Event{Kind: Exited, Exit: Exit{Code: -1, Signal: "SIGKILL"}}, nil
}

func (h hangs) Close() error { return nil }

func TestOutputIsBounded(t *testing.T) {
	s, store, host := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running})
	chunk := []byte(strings.Repeat("€", 1<<16)) // 3 bytes each, which the limit does not divide
	host.onStart = func(Command) (EventStream, error) {
		sc := &script{}
		for range 60 {
			sc.events = append(sc.events, Event{Kind: Stdout, Data: chunk})
		}
		sc.events = append(sc.events, Event{Kind: Stderr, Data: []byte("x")}, Event{Kind: Exited, Exit: Exit{Code: 4}})
		return sc, nil
	}
	res, err := s.Processes().Exec(t.Context(), "sb1", Command{Cmd: "c"}, nil)
	if err != nil || !res.Truncated || res.Code != 4 || string(res.Stderr) != "x" {
		t.Fatalf("truncated %v, code %d, stderr %q, %v", res.Truncated, res.Code, res.Stderr, err)
	}
	if n := len(res.Stdout); n > MaxOutput || n < MaxOutput-utf8.UTFMax || !utf8.Valid(res.Stdout) {
		t.Errorf("%d bytes, valid %v", n, utf8.Valid(res.Stdout))
	}
	exact := bounded{}
	exact.add(bytes.Repeat([]byte("x"), MaxOutput))
	if exact.truncated {
		t.Error("output that just fits is called truncated")
	}
}

func TestReadKeepsTheSandboxInUse(t *testing.T) {
	s, store, _ := newTest(t)
	store.put(Sandbox{ID: "sb1", Status: Running})
	s.files = fakeFiles{content: io.NopCloser(strings.NewReader("x"))}
	c, err := s.Files().Read(t.Context(), "sb1", "", "/x")
	if err != nil || !s.activity.busy("sb1") {
		t.Fatalf("busy %v, %v", s.activity.busy("sb1"), err)
	}
	if err := c.Close(); err != nil || s.activity.busy("sb1") {
		t.Errorf("busy %v, %v", s.activity.busy("sb1"), err)
	}
}
