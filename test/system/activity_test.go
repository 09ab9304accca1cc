package system_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

const (
	// idleSeconds is the idle timeout of a sandbox that is used all the time.
	idleSeconds = 1
	// useTime is how long it is used: one whose use does not count is paused before.
	useTime = 3500 * time.Millisecond
	// useEvery is how often.
	useEvery = 300 * time.Millisecond
)

// drip calls do again and again, for as long as the sandbox is used.
func drip(do func() error) error {
	tick := time.NewTicker(useEvery)
	defer tick.Stop()
	for end := time.Now().Add(useTime); time.Now().Before(end); <-tick.C {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// uses are ways to use a sandbox. Each gets it ready, and returns what uses it: a bit at a
// time, with less than its idle timeout in between.
var uses = map[string]func(t *testing.T, s *sandbox) func(context.Context) error{
	"pings": func(_ *testing.T, s *sandbox) func(context.Context) error {
		return func(ctx context.Context) error {
			return drip(func() error {
				a, err := s.p.try(ctx, http.MethodPost, s.path("/ping"), nil)
				if err == nil && a.status >= 300 {
					err = fmt.Errorf("ping answered %d: %s", a.status, a.body)
				}
				return err
			})
		}
	},
	"a slow upload": func(_ *testing.T, s *sandbox) func(context.Context) error {
		return func(ctx context.Context) error {
			read, write := io.Pipe()
			go func() {
				_ = write.CloseWithError(drip(func() error {
					_, err := io.WriteString(write, "a little more\n")
					return err
				}))
			}()
			a, err := s.upload(ctx, "/tmp/slow", read)
			if err == nil && a.status >= 300 {
				err = fmt.Errorf("the upload answered %d: %s", a.status, a.body)
			}
			return err
		}
	},
	"a slow download": func(t *testing.T, s *sandbox) func(context.Context) error {
		const size = 64 * mib // more than sockets hold
		s.sh(t, fmt.Sprintf("head -c %d /dev/zero >/tmp/large", size))
		return func(ctx context.Context) error {
			resp, err := s.download(ctx, "/tmp/large")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			got := int64(0)
			if err := drip(func() error {
				n, err := io.CopyN(io.Discard, resp.Body, mib)
				got += n
				return err
			}); err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if got += n; err == nil && got != size {
				err = fmt.Errorf("%d bytes came", got)
			}
			return err
		}
	},
	"keys in a terminal": func(t *testing.T, s *sandbox) func(context.Context) error {
		terminal, _ := s.open(t, "/pty", object{"type": "start", "cmd": "/bin/sh", "args": []string{"-c", "stty -echo; echo rea''dy; exec cat >/dev/null"}})
		terminal.sees("ready")
		return func(context.Context) error {
			return drip(func() error { terminal.types("k"); return nil })
		}
	},
	"what a terminal shows": func(t *testing.T, s *sandbox) func(context.Context) error {
		terminal, _ := s.open(t, "/pty", object{"type": "start", "cmd": "/bin/sh", "args": []string{"-c", "while :; do echo tick; sleep 0.1; done"}})
		return func(context.Context) error {
			err := drip(func() error { terminal.sees("tick"); return nil })
			terminal.conn.CloseNow()
			return err
		}
	},
	"bytes from a port": func(t *testing.T, s *sandbox) func(context.Context) error {
		s.serveClock(t)
		events := s.visit(t, "/events")
		return func(context.Context) error {
			defer events.Body.Close()
			piece := make([]byte, len("data: tick\n\n"))
			return drip(func() error { _, err := io.ReadFull(events.Body, piece); return err })
		}
	},
}

// What counts as use keeps a sandbox awake, and when it ends the sandbox is paused in time.
func TestUseKeepsASandboxAwake(t *testing.T) {
	p := theProgram(t)
	for name, ready := range uses {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			s := newSandbox(t, p, nil)
			use := ready(t, s)
			s.do(t, "/timeout", object{"timeout_sec": idleSeconds}, http.StatusOK)
			ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
			defer cancel()
			err := use(ctx)
			end := time.Now()
			if status, reason := s.status(t); err != nil || status != "running" {
				t.Fatalf("at the end of its use it is %s (%s): %v", status, reason, err)
			}
			var info object
			eventually(t, settleLimit, func() error {
				if info = p.call(t, http.MethodGet, s.path(""), nil).object(t); info["status"] != "paused" {
					return fmt.Errorf("it is %v", info["status"])
				}
				return nil
			})
			const idle = idleSeconds * time.Second
			at := when(t, info, "paused_at")
			if early := at.Sub(when(t, info, "last_active_at")); early < idle-50*time.Millisecond {
				t.Errorf("paused %v after it was used", early)
			}
			if late := at.Sub(end) - idle; late > time.Second {
				t.Errorf("paused %v after its time", late)
			}
		})
	}
}
