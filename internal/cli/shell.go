package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func newShell(a *app) *cobra.Command {
	var start terminalMessage
	var env pairsFlag
	var attach string
	cmd := command(&cobra.Command{
		Use:   "shell ID [flags] [-- CMD [ARG…]]",
		Short: "Open a terminal in a sandbox, or go back to one",
		Long: `Opens a terminal in a sandbox, with the user's login shell or another program.

` + detachKeys + ` detaches: the terminal goes on without you, and --attach TAG goes back to it, from this
machine or another. When the connection breaks, wrenn connects again by itself, for two
minutes. It ends with the exit code of the program, or with 0 when you detached.`,
		Example: `  wrenn shell sb0c9f4kq2m7x1v8t3z5wd
  wrenn shell sb0c9f4kq2m7x1v8t3z5wd --tag work -- htop
  wrenn shell sb0c9f4kq2m7x1v8t3z5wd --attach work`,
		RunE: func(cmd *cobra.Command, args []string) error {
			line, err := flagsAfter(cmd, args[1:])
			if err != nil {
				return err
			}
			if len(line) > 0 {
				start.Cmd, start.Args = line[0], line[1:]
			}
			start.Envs = env
			if attach != "" && (len(line) > 0 || start.Tag != "" || start.User != "" || start.Cwd != "" || len(env) > 0) {
				return usageErrorf(cmd, "--attach goes back to a terminal that runs, and goes with no other flag and no command")
			}
			s, err := connect()
			if err != nil {
				return err
			}
			r := &remoteTerminal{server: s, id: args[0], start: start, tag: attach, attach: attach != ""}
			return a.inTerminal(cmd, r, true)
		},
	}, named(firstArgument, takes(1, 0, "shell wants a sandbox's id")))
	flags := cmd.Flags()
	flags.StringVar(&attach, "attach", "", "go back to the terminal with this tag")
	flags.StringVar(&start.Tag, "tag", "", "name to find the terminal by (default one is made up)")
	flags.StringVarP(&start.User, "user", "u", "", "user to run as (default the sandbox's)")
	flags.StringVarP(&start.Cwd, "cwd", "w", "", "working directory (default the user's home)")
	flags.VarP(&env, "env", "e", "environment variable; may be repeated")
	return commandFollows(cmd)
}

// terminalEnd is how a person's time in a terminal ended, as --json prints it.
type terminalEnd struct {
	SandboxID string `json:"sandbox_id"`
	Tag       string `json:"tag"`
	Detached  bool   `json:"detached"`
	ExitCode  *int   `json:"exit_code,omitempty"`
	Signal    string `json:"signal,omitempty"`
	TimedOut  bool   `json:"timed_out,omitempty"`
}

// inTerminal gives the person's terminal to one in a sandbox until that ends or the person
// detaches. With keys the person can type.
func (a *app) inTerminal(cmd *cobra.Command, r *remoteTerminal, keys bool) error {
	in, out, err := terminalFiles(cmd)
	if err != nil {
		return err
	}
	how, err := r.run(cmd.Context(), in, out, keys)
	end := terminalEnd{SandboxID: r.id, Tag: r.tag, Detached: err == nil && how == nil}
	if how != nil {
		end.ExitCode, end.Signal, end.TimedOut = &how.ExitCode, how.Signal, how.TimedOut
	}
	switch {
	case err != nil:
		switch {
		case r.tag != "" && r.paused:
			streamsOf(cmd).warn("the terminal is paused with its sandbox; go back to it with: wrenn resume %s && wrenn shell %[1]s --attach %s", r.id, printable(r.tag))
		case r.tag != "" && !r.ended:
			streamsOf(cmd).warn("the terminal goes on without you; go back to it with: wrenn shell %s --attach %s", r.id, printable(r.tag))
		}
		return err
	case a.json:
		err = printJSON(cmd.OutOrStdout(), end)
	case how == nil:
		streamsOf(cmd).warn("detached; go back with: wrenn shell %s --attach %s", r.id, printable(r.tag))
	}
	if how == nil || err != nil {
		return err
	}
	name := r.start.Cmd
	if name == "" {
		name = "the shell"
	}
	return how.status(clientMessage{Cmd: name, TimeoutSec: r.start.TimeoutSec})
}

// terminalFiles returns the two ends of the terminal that the person sits at.
func terminalFiles(cmd *cobra.Command) (in, out *os.File, err error) {
	in, _ = isFile(cmd.InOrStdin())
	out, _ = isFile(cmd.OutOrStdout())
	if !isTerminal(cmd.InOrStdin()) || !isTerminal(cmd.OutOrStdout()) {
		return nil, nil, fault.New(fault.InvalidRequest, "a terminal is needed, and standard input and output are not one; for pipes use `wrenn exec ID -- CMD`")
	}
	return in, out, nil
}

// stoppedRemote is what is done with the remote terminal when a signal ends the program.
func (r *remoteTerminal) stopped(ctx context.Context) {
	if !r.killWhenStopped || r.tag == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	// The program ends either way, and says why.
	r.ended = r.server.signalProcess(ctx, r.id, r.tag, "SIGKILL") == nil
}
