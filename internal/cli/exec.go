package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// maxBufferedStdin bounds the stdin of a command that is not streamed, in bytes: it
// travels inside a JSON body of at most 8 MiB.
const maxBufferedStdin = 6 << 20

// commandFlags say how to run a command of a sandbox.
type commandFlags struct {
	cwd         string
	timeout     secondsFlag
	interactive bool
}

func (f *commandFlags) register(flags *pflag.FlagSet) {
	flags.StringVarP(&f.cwd, "cwd", "w", "", "working directory (default the user's home)")
	flags.Var(&f.timeout, "timeout", "kill the command after this long, such as 90s (default never)")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass on stdin even from a terminal")
}

// stdin is what the command reads: a pipe or a file always, a terminal when asked to.
func (f *commandFlags) stdin(in io.Reader) io.Reader {
	if isTerminal(in) && !f.interactive {
		return nil
	}
	return in
}

func newExec(a *app) *cobra.Command {
	var f commandFlags
	var env pairsFlag
	var user, tag string
	var background, tty bool
	cmd := command(&cobra.Command{
		Use:   "exec ID [flags] -- CMD [ARG…]",
		Short: "Run a command in a sandbox",
		Long: `Runs one program in a sandbox with live streams and ends with its exit code. It is not a
shell line; for that use: sh -c 'LINE'.

With --tty the program runs in a terminal, and with --interactive you type into it: -it is
for editors and the like. As in wrenn shell, ` + detachKeys + ` leaves it running. Without
--interactive Ctrl-C ends it.`,
		Example: `  wrenn exec sb0c9f4kq2m7x1v8t3z5wd -- uname -a
  wrenn exec -it sb0c9f4kq2m7x1v8t3z5wd -- vi notes.txt
  wrenn exec sb0c9f4kq2m7x1v8t3z5wd --background --tag web -- python3 -m http.server
  tar -c . | wrenn exec sb0c9f4kq2m7x1v8t3z5wd -- tar -x`,
		RunE: func(cmd *cobra.Command, args []string) error {
			line, err := flagsAfter(cmd, args[1:])
			if err != nil {
				return err
			}
			if len(line) == 0 {
				return usageErrorf(cmd, "exec wants a command after the sandbox's id: exec ID -- CMD")
			}
			s, err := connect()
			if err != nil {
				return err
			}
			start := clientMessage{
				Cmd: line[0], Args: line[1:], Envs: env, Cwd: f.cwd, User: user, TimeoutSec: int64(f.timeout), Tag: tag,
			}
			if tty {
				if background {
					return usageErrorf(cmd, "--tty and --background do not go together; for a terminal in the background detach from one")
				}
				r := &remoteTerminal{server: s, id: args[0], killWhenStopped: true, start: terminalMessage{
					Cmd: line[0], Args: line[1:], Envs: env, Cwd: f.cwd, User: user, TimeoutSec: int64(f.timeout), Tag: tag,
				}}
				return a.inTerminal(cmd, r, f.interactive)
			}
			if background {
				return a.execBackground(cmd, s, args[0], start)
			}
			return a.exec(cmd.Context(), s, args[0], start, f.stdin(cmd.InOrStdin()), streamsOf(cmd))
		},
	}, named(firstArgument, takes(1, 0, "exec wants a sandbox's id and a command: exec ID -- CMD")))
	f.register(cmd.Flags())
	cmd.Flags().VarP(&env, "env", "e", "environment variable; may be repeated")
	cmd.Flags().StringVarP(&user, "user", "u", "", "user to run as (default the sandbox's)")
	cmd.Flags().BoolVarP(&background, "background", "b", false, "start the command and leave it running")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "run the command in a terminal")
	cmd.Flags().StringVar(&tag, "tag", "", "name to find the process by")
	return commandFollows(cmd)
}

func (a *app) execBackground(cmd *cobra.Command, s *server, id string, start clientMessage) error {
	want := execRequest(start)
	want.Background = true
	began, err := decode[api.ExecStarted](s.api.Exec(cmd.Context(), id, want))
	if err != nil {
		return fmt.Errorf("run %s: %w", start.Cmd, err)
	}
	if a.json {
		return printJSON(cmd.OutOrStdout(), began)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "pid %d, tag %s\n", began.Pid, printable(began.Tag))
	return err
}

// exec runs a command to its end. What it ended with is the error, nil for exit code 0.
func (a *app) exec(ctx context.Context, s *server, id string, start clientMessage, in io.Reader, to streams) error {
	var how ended
	var err error
	if a.json {
		how, err = s.execBuffered(ctx, id, start, in, to)
	} else {
		how, err = s.stream(ctx, id, start, in, to.out, to.err)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", start.Cmd, err)
	}
	return how.status(start)
}

func execRequest(start clientMessage) api.ExecRequest {
	return api.ExecRequest{
		Cmd: start.Cmd, Args: start.Args, Envs: start.Envs, Cwd: start.Cwd, User: start.User, Tag: start.Tag,
		TimeoutSec: &start.TimeoutSec,
	}
}

// execBuffered runs a command and prints the API's answer about it as JSON.
func (s *server) execBuffered(ctx context.Context, id string, start clientMessage, in io.Reader, to streams) (ended, error) {
	want := execRequest(start)
	if in != nil {
		text, err := io.ReadAll(io.LimitReader(in, maxBufferedStdin+1))
		if err != nil {
			return ended{}, fmt.Errorf("read stdin: %w", err)
		}
		if len(text) > maxBufferedStdin || !utf8.Valid(text) {
			return ended{}, fault.New(fault.InvalidRequest, "with --json, stdin must be UTF-8 of at most %d MiB; run without --json to stream it", maxBufferedStdin>>20)
		}
		want.Stdin = string(text)
	}
	stop := spin(to.err, "running")
	result, err := decode[api.ExecResult](s.api.Exec(ctx, id, want))
	stop()
	if err != nil {
		return ended{}, err
	}
	return ended{ExitCode: int(result.ExitCode), Signal: result.Signal, TimedOut: result.TimedOut}, printJSON(to.out, result)
}

// status turns the end of a command into the program's own end.
func (e ended) status(start clientMessage) error {
	name := printable(start.Cmd)
	switch {
	case e.TimedOut:
		return &statusError{exitTimedOut, fmt.Sprintf("%s was killed: its %ds were up", name, start.TimeoutSec)}
	case e.Signal != "":
		number := cmp.Or(int(unix.SignalNum(e.Signal)), int(unix.SIGKILL))
		return &statusError{exitSignal + number, fmt.Sprintf("%s was ended by %s", name, e.Signal)}
	case e.ExitCode != 0:
		return &statusError{code: e.ExitCode}
	}
	return nil
}

func newProcesses(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:   "ps ID",
		Short: "List the processes started in a sandbox",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			list, err := decode[api.ProcessList](s.api.ListProcesses(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			var rows [][]string
			for _, p := range list.Processes {
				line := strings.Join(append([]string{p.Cmd}, p.Args...), " ")
				rows = append(rows, []string{fmt.Sprint(p.Pid), cmp.Or(p.Tag, "-"), line})
			}
			return printTable(cmd.OutOrStdout(), []string{"PID", "TAG", "COMMAND"}, rows)
		},
	}, named(allArguments, takes(1, 1, "ps wants one sandbox's id")))
}
