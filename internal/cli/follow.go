package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/api"
)

func newKill(a *app) *cobra.Command {
	var sig string
	cmd := command(&cobra.Command{
		Use:   "kill ID PID|TAG",
		Short: "End a process of a sandbox",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := signalName(sig)
			if err != nil {
				return usageErrorf(cmd, "%s", err)
			}
			s, err := connect()
			if err != nil {
				return err
			}
			if err := s.signalProcess(cmd.Context(), args[0], args[1], name); err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"sandbox_id": args[0], "process": args[1], "signal": name})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), args[1])
			return err
		},
	}, takes(2, 2, "kill wants a sandbox's id and the pid or tag of a process"))
	cmd.Flags().StringVarP(&sig, "signal", "s", "SIGKILL", "SIGKILL or SIGTERM")
	return cmd
}

// signalName reads a signal as people write it: TERM, SIGTERM or 15.
func signalName(given string) (string, error) {
	names := map[string]string{
		"SIGKILL": "SIGKILL", "KILL": "SIGKILL", "9": "SIGKILL",
		"SIGTERM": "SIGTERM", "TERM": "SIGTERM", "15": "SIGTERM",
	}
	if name, ok := names[given]; ok {
		return name, nil
	}
	return "", fmt.Errorf("--signal %q is neither SIGKILL nor SIGTERM", given)
}

func (s *server) signalProcess(ctx context.Context, id, process, sig string) error {
	params := &api.SignalProcessParams{Signal: api.SignalProcessParamsSignal(sig)}
	return discard(s.api.SignalProcess(ctx, id, process, params))
}

func newLogs(a *app) *cobra.Command {
	var follow bool
	cmd := command(&cobra.Command{
		Use:   "logs ID PID|TAG [flags]",
		Short: "Print what a process in the background has printed",
		Long: `Prints the latest output of a process that was started with exec --background, up to 256 KiB
of it. With --follow it goes on with what comes, until the process ends, and ends with its
exit code.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			how, err := s.logs(cmd.Context(), args[0], args[1], follow, a.json, streamsOf(cmd))
			if err != nil || how == nil || !follow {
				return err
			}
			return how.status(clientMessage{Cmd: args[1]})
		},
	}, takes(2, 2, "logs wants a sandbox's id and the pid or tag of a process"))
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the process ends")
	return cmd
}

// lastBytes is how long the last bytes of what was kept may take. The server holds the
// first bytes of a character back until the rest of it has come.
const lastBytes = 500 * time.Millisecond

// logs prints what was kept of a process's output and, with follow, what comes until its
// end, which it returns. As JSON it prints the server's messages.
func (s *server) logs(ctx context.Context, id, process string, follow, asJSON bool, to streams) (*ended, error) {
	conn, err := s.dialStream(ctx, id, "processes/"+url.PathEscape(process)+"/stream?replay=true")
	if err != nil {
		return nil, err
	}
	defer conn.CloseNow()
	x := &execStream{conn: conn, id: id}
	began := false
	var old int64 // bytes of output from before that have not come yet
	var failure error
	for follow || !began || old > 0 {
		text, err := x.next(ctx, began && !follow && old < utf8.UTFMax)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return nil, nil
		case err != nil:
			return nil, cmp.Or(failure, x.broken(err))
		}
		m, err := decodeMessage(text)
		if err == nil && asJSON {
			_, err = fmt.Fprintf(to.out, "%s\n", text)
		}
		if err != nil {
			return nil, err
		}
		switch m.Type {
		case "start":
			began, old = true, m.ReplayBytes
		case "exit":
			return &m.ended, nil
		case "error":
			failure = m.failure()
		case "stdout", "stderr":
			n, err := m.print(to, asJSON)
			if err != nil {
				return nil, err
			}
			old -= int64(n)
		}
	}
	return nil, nil
}

// next reads the server's next message, which with soon must come soon.
func (x *execStream) next(ctx context.Context, soon bool) ([]byte, error) {
	if soon {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lastBytes)
		defer cancel()
	}
	_, text, err := x.conn.Read(ctx)
	return text, err
}

// print writes output to where it belongs, unless it was printed as JSON, and returns its
// length.
func (m *serverMessage) print(to streams, asJSON bool) (n int, err error) {
	data, err := m.bytes()
	if err != nil || asJSON {
		return len(data), err
	}
	out := to.out
	if m.Type == "stderr" {
		out = to.err
	}
	if _, err := out.Write(data); err != nil {
		return 0, fmt.Errorf("write the process's output: %w", err)
	}
	return len(data), nil
}
