package guestclient

import (
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// What a process's state does not allow is no failure of the guest.
func TestInputThatIsNotPossible(t *testing.T) {
	c := startEnvd(t)
	inTerminal := Command{Cmd: "sleep", Args: []string{"300"}, Terminal: &TerminalSize{Cols: 80, Rows: 24}}
	for name, test := range map[string]struct {
		cmd  Command
		do   func(s Selector) error
		says string
	}{
		"stdin of one that has none":      {Command{Cmd: "sleep", Args: []string{"300"}}, func(s Selector) error { return c.SendInput(t.Context(), s, []byte("x")) }, "without stdin"},
		"close stdin where there is none": {Command{Cmd: "sleep", Args: []string{"300"}}, func(s Selector) error { return c.CloseStdin(t.Context(), s) }, "without stdin"},
		"stdin that is closed": {Command{Cmd: "sleep", Args: []string{"300"}, Stdin: true}, func(s Selector) error {
			if err := c.CloseStdin(t.Context(), s); err != nil {
				return err
			}
			return c.SendInput(t.Context(), s, []byte("x"))
		}, "is closed"},
		"type where there is no terminal":   {Command{Cmd: "sleep", Args: []string{"300"}, Stdin: true}, func(s Selector) error { return c.SendTerminalInput(t.Context(), s, []byte("x")) }, "no terminal"},
		"resize where there is no terminal": {Command{Cmd: "sleep", Args: []string{"300"}}, func(s Selector) error { return c.ResizeTerminal(t.Context(), s, TerminalSize{Cols: 1, Rows: 1}) }, "no terminal"},
		"stdin of a terminal":               {inTerminal, func(s Selector) error { return c.SendInput(t.Context(), s, []byte("x")) }, "has a terminal"},
		"close a terminal":                  {inTerminal, func(s Selector) error { return c.CloseStdin(t.Context(), s) }, "cannot be closed"},
	} {
		err := c.Start(t.Context(), test.cmd, func(e Event) error {
			started, ok := e.(Started)
			if !ok {
				return nil
			}
			s := Selector{PID: started.PID}
			if err := test.do(s); !fault.Is(err, fault.InvalidState) || !strings.Contains(fault.MessageOf(err), test.says) {
				t.Errorf("%s: %s %v", name, fault.CodeOf(err), err)
			}
			return c.Signal(t.Context(), s, true)
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"input": c.SendInput(t.Context(), Selector{PID: 1 << 30}, nil), "close": c.CloseStdin(t.Context(), Selector{PID: 1 << 30}),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s to nobody: %v", name, err)
		}
	}
	c.Close()
	if err := c.SendInput(t.Context(), Selector{PID: 1}, nil); !fault.Is(err, fault.AgentError) {
		t.Errorf("input to a guest that is gone: %v", err)
	}
}
