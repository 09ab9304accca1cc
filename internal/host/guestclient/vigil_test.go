package guestclient

import (
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// A command that stops the guest's daemon must not keep whoever waits for it, nor keep
// the sandbox from being idle.
func TestAStoppedGuestIsGivenUp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f") // made before envd is, and so removed after its end
	c := startEnvd(t)
	c.waits = waits{silence: time.Minute, overdue: 50 * time.Millisecond}
	if err := c.WriteFile(t.Context(), file, "", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	err := c.Start(t.Context(), shell("echo $PPID"), func(e Event) error {
		if out, ok := e.(Output); ok {
			said.Write(out.Data)
		}
		return nil
	})
	pid, parseErr := strconv.Atoi(strings.TrimSpace(said.String()))
	if err != nil || parseErr != nil {
		t.Fatalf("a command does not say who its parent is: %q, %v", &said, err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	command := Selector{PID: 1}
	stop := shell("kill -STOP $PPID; exec sleep 60")
	stop.Timeout = 500 * time.Millisecond
	began := time.Now()
	err = c.Start(t.Context(), stop, func(e Event) error {
		if started, ok := e.(Started); ok { // it may be stopped before it can say so
			command.PID = started.PID
		}
		return nil
	})
	if took := time.Since(began); !fault.Is(err, fault.DeadlineExceeded) || took > 10*time.Second || took < stop.Timeout {
		t.Errorf("a command with a time limit ended with %v after %v", err, took)
	}

	c.waits.silence = 50 * time.Millisecond
	nothing := func(Event) error { return nil }
	_, _, readErr := c.ReadFile(t.Context(), file, "")
	for call, err := range map[string]error{
		"start": c.Start(t.Context(), shell("true"), nothing), "connect": c.Connect(t.Context(), command, Replay{}, nothing),
		"read": readErr, "write": c.WriteFile(t.Context(), file, "", strings.NewReader("x"), 1),
	} {
		if !fault.Is(err, fault.AgentError) || !strings.Contains(fault.MessageOf(err), "has said nothing") {
			t.Errorf("%s: %v", call, err)
		}
	}
}

// A guest that goes silent in the middle of a file is given up, too.
func TestAFileThatStopsComing(t *testing.T) {
	c := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	c.waits.silence = 50 * time.Millisecond
	body, _, err := c.ReadFile(t.Context(), "/f", "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); string(got) != "half" || !fault.Is(err, fault.AgentError) {
		t.Errorf("%q, %v", got, err)
	}
}

// slowly is a file whose sender takes its time.
type slowly struct {
	rest  []string
	pause time.Duration
}

func (s *slowly) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	<-time.After(s.pause)
	n := copy(p, s.rest[0])
	s.rest = s.rest[1:]
	return n, nil
}

// Who takes or sends slowly is not the guest, and is not given up.
func TestTheCallersTimeIsNotTheGuests(t *testing.T) {
	c := startEnvd(t)
	c.waits = waits{silence: 300 * time.Millisecond, overdue: 300 * time.Millisecond}
	pause := 400 * time.Millisecond
	file := filepath.Join(t.TempDir(), "f")
	if err := c.WriteFile(t.Context(), file, "", &slowly{[]string{"a", "b"}, pause}, -1); err != nil {
		t.Errorf("write: %v", err)
	}
	body, _, err := c.ReadFile(t.Context(), file, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	<-time.After(pause)
	if got, err := io.ReadAll(body); string(got) != "ab" || err != nil {
		t.Errorf("read: %q, %v", got, err)
	}
	if err := c.Start(t.Context(), shell("echo 1; echo 2"), func(e Event) error {
		if _, ok := e.(Started); ok {
			<-time.After(pause)
		}
		return nil
	}); err != nil {
		t.Errorf("start: %v", err)
	}
}
