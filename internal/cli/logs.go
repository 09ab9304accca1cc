package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func newLogs(a *app) *cobra.Command {
	var follow bool
	cmd := command(&cobra.Command{
		Use:   "logs ID PID|TAG [flags]",
		Short: "Print what a process in the background has printed",
		Long: `Prints the latest output of a process that was started with exec --background, up to 256 KiB
of it. With --follow it goes on with what comes, until the process ends, and ends with its
exit code.

When the connection breaks, --follow connects again and goes on where it was. Output that
came meanwhile is kept, up to 256 KiB; of more than that it says on stderr how much is
missing.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			l := logs{server: s, id: args[0], process: args[1], asJSON: a.json, to: streamsOf(cmd)}
			if !follow {
				return l.latest(cmd.Context())
			}
			how, err := l.follow(cmd.Context())
			if err != nil {
				return err
			}
			return how.status(clientMessage{Cmd: args[1]})
		},
	}, named(allArguments, takes(2, 2, "logs wants a sandbox's id and the pid or tag of a process")))
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the process ends")
	return cmd
}

// logs prints the output of a process; as JSON, the server's messages.
type logs struct {
	server  *server
	id      string // of the sandbox
	process string // its pid, or its tag until the pid is known
	asJSON  bool
	to      streams

	pid int64 // 0 until the server has said it
	// shown is what was printed so far; nil when the sandbox does not say where its output
	// begins, so that no other connection can go on there.
	shown     *outputOffset
	connected time.Time // when the latest connection began, zero if there is none
	trouble   outage
}

// lastBytes is how long the last bytes of what was kept may take. The server holds the
// first bytes of a character back until the rest of it has come.
const lastBytes = 500 * time.Millisecond

// latest prints what was kept.
func (l *logs) latest(ctx context.Context) error {
	conn, err := l.dial(ctx, "replay=true")
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	began := false
	var old int64 // bytes of output from before that have not come yet
	var failure error
	for !began || old > 0 {
		text, err := read(ctx, conn, began && old < utf8.UTFMax)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return nil
		case err != nil:
			return cmp.Or(failure, l.broken(err))
		}
		m, err := l.decode(text)
		if err != nil {
			return err
		}
		switch m.Type {
		case "start":
			began, old = true, m.ReplayBytes
		case "exit":
			return nil
		case "error":
			failure = m.failure()
		case "stdout", "stderr":
			n, err := l.print(m)
			if err != nil {
				return err
			}
			old -= int64(n)
		}
	}
	return nil
}

// follow prints what was kept and what comes until the process's end, which it returns.
func (l *logs) follow(ctx context.Context) (*ended, error) {
	for {
		how, err := l.followOnce(ctx)
		var cut *interruption
		if !errors.As(err, &cut) {
			return how, err
		}
		if err := l.pause(ctx, cut.reason); err != nil {
			return nil, err
		}
	}
}

// followOnce uses one connection to its end, or the process's.
func (l *logs) followOnce(ctx context.Context) (*ended, error) {
	from := cmp.Or(l.shown, &outputOffset{})
	// Who knows of no place, as servers and sandboxes of before, has a replay at least.
	conn, err := l.dial(ctx, fmt.Sprintf("replay=true&stdout_from=%d&stderr_from=%d", from.Stdout, from.Stderr))
	if err != nil {
		return nil, l.interrupted(ctx, err)
	}
	defer conn.CloseNow()
	began := false
	var failure error
	for {
		text, err := read(ctx, conn, false)
		if err != nil {
			return nil, l.interrupted(ctx, cmp.Or(failure, l.broken(err)))
		}
		m, err := l.decode(text)
		if err != nil {
			return nil, err
		}
		switch m.Type {
		case "start":
			began = true
			err = l.begin(m)
		case "exit":
			return &m.ended, nil
		case "error":
			failure = m.failure()
			if fault.Is(failure, fault.NotFound) && !began && l.pid != 0 {
				failure = fault.Wrap(failure, fault.NotFound,
					"process %d ended while there was no connection; how it ended is not known any more", l.pid)
			}
		case "stdout", "stderr":
			_, err = l.print(m)
		}
		if err != nil {
			return nil, err
		}
	}
}

// begin is what happens when the server has said where the output begins that it sends.
func (l *logs) begin(m serverMessage) error {
	again := l.pid != 0
	if again && (m.PID != l.pid || m.Offset == nil || m.Offset.Stdout < l.shown.Stdout || m.Offset.Stderr < l.shown.Stderr) {
		return fault.New(fault.Conflict,
			"process %d has printed less than was shown here: it is another one now, or an earlier state of it", l.pid)
	}
	if again {
		missing := m.Offset.Stdout - l.shown.Stdout + m.Offset.Stderr - l.shown.Stderr
		if missing > 0 {
			l.to.warn("connected again; %d bytes of output that came meanwhile were not kept", missing)
		} else {
			l.to.warn("connected again")
		}
		l.trouble.reason = ""
	}
	// A tag may be given to another process, and a pid is not that soon.
	l.pid, l.process = m.PID, strconv.FormatInt(m.PID, 10)
	l.shown, l.connected = m.Offset, time.Now()
	return nil
}

// broken is the error for a connection that ended before the process did.
func (l *logs) broken(err error) error {
	if l.shown != nil {
		return fault.Wrap(err, fault.HostUnavailable, "the connection broke")
	}
	return fault.Wrap(err, fault.HostUnavailable,
		"the connection broke before the process ended; it may still run, see `wrenn ps %s`", l.id)
}

// interrupted is what the error of a connection means.
func (l *logs) interrupted(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case l.shown != nil && mayPass(err):
		return &interruption{err}
	}
	return err
}

// pause waits until it is time to connect again.
func (l *logs) pause(ctx context.Context, why error) error {
	if !l.connected.IsZero() {
		l.trouble.held(time.Since(l.connected))
		l.connected = time.Time{}
	}
	wait, again := l.trouble.next(time.Now())
	if !again {
		return gaveUp(why)
	}
	if reason := printable(fault.MessageOf(why)); reason != l.trouble.reason {
		l.trouble.reason = reason
		l.to.warn("%s; connecting again, for %v at most", reason, reconnectFor)
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *logs) dial(ctx context.Context, query string) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	return l.server.dialStream(ctx, l.id, "processes/"+url.PathEscape(l.process)+"/stream?"+query)
}

// read reads the server's next message, which with soon must come soon.
func read(ctx context.Context, conn *websocket.Conn, soon bool) ([]byte, error) {
	if soon {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lastBytes)
		defer cancel()
	}
	_, text, err := conn.Read(ctx)
	return text, err
}

// decode reads a message, and prints it if it is to be printed as it is.
func (l *logs) decode(text []byte) (serverMessage, error) {
	m, err := decodeMessage(text)
	if err == nil && l.asJSON {
		_, err = fmt.Fprintf(l.to.out, "%s\n", text)
	}
	return m, err
}

// print writes output to where it belongs, unless it was printed as JSON, and returns its
// length.
func (l *logs) print(m serverMessage) (n int, err error) {
	data, err := m.bytes()
	if err != nil {
		return 0, fault.Wrap(err, fault.AgentError, "the server sent output that cannot be decoded")
	}
	shown, to := cmp.Or(l.shown, &outputOffset{}), l.to.out
	if m.Type == "stderr" {
		to = l.to.err
		shown.Stderr += int64(len(data))
	} else {
		shown.Stdout += int64(len(data))
	}
	if l.asJSON {
		return len(data), nil
	}
	if _, err := to.Write(data); err != nil {
		return 0, fmt.Errorf("write the process's output: %w", err)
	}
	return len(data), nil
}
