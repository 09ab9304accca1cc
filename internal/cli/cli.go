// Package cli is the client side of the wrenn program: its commands, flags, output and
// progress. It talks to a server through the public API alone, like any other client,
// and must not know how a floor works inside.
package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// app is what the commands share: the program's version and the options of all of them.
type app struct {
	version string
	json    bool
}

// NewRoot returns the program's root command with the client commands. The caller may
// add its own; run the whole with Execute.
func NewRoot(version string) *cobra.Command {
	a := &app{version: version}
	root := &cobra.Command{
		Use:   "wrenn",
		Short: "Isolated Linux sandboxes that start in a blink",
		Long: `Wrenn gives an AI agent, or a person, an isolated Linux computer of its own.

The client commands find the server by WRENN_BASE_URL and WRENN_API_KEY, or by the
profile that ` + "`wrenn up`" + ` writes (~/.config/wrenn/profile.json).

Exit codes: run and exec pass on the command's own; 128+n when signal n ended it, 124 when
its time was up. 125 means that Wrenn itself failed, 2 that it was called wrongly.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageErrorf(cmd, "unknown command %q%s", args[0], suggestions(cmd, args[0]))
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageErrorf(cmd, "%s", flagError(err)) })
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON with the field names of the API")
	for _, g := range []struct{ id, title string }{
		{groupSandboxes, "Sandboxes:"},
		{groupProcesses, "Inside a sandbox:"},
		{GroupMachine, "This machine:"},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
	}
	root.SetHelpCommandGroupID(GroupMachine)
	root.SetCompletionCommandGroupID(GroupMachine)
	for group, commands := range map[string][]*cobra.Command{
		groupSandboxes: {
			newRun(a), newCreate(a), newList(a), newGet(a), newRemove(a), newPause(a), newResume(a), newFork(a),
			newTimeout(a), newMetrics(a), newSnapshot(a), newTemplates(a),
		},
		groupProcesses: {newShell(a), newExec(a), newProcesses(a), newLogs(a), newKill(a), newCopy(a), newPorts(a), newOpen(a)},
		GroupMachine:   {newDoctor(a), newVersion(a)},
	} {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	return root
}

// Groups of commands in the help text.
const (
	groupSandboxes = "sandboxes"
	groupProcesses = "processes"
	// GroupMachine is for commands about this machine, such as the server's own.
	GroupMachine = "machine"
)

func suggestions(cmd *cobra.Command, typed string) string {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(typed); len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return ""
}

// command sets what the arguments of a client command must be.
func command(cmd *cobra.Command, args cobra.PositionalArgs) *cobra.Command {
	cmd.Args = args
	return cmd
}

// takes wants at least least arguments, and at most most of them unless most is 0, and
// otherwise says what they are.
func takes(least, most int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, given []string) error {
		if len(given) < least || most > 0 && len(given) > most || most == 0 && least == 0 && len(given) > 0 {
			return fmt.Errorf("%s; got %d argument(s)", what, len(given))
		}
		return nil
	}
}

// Which arguments name something that the server has; what follows is a program's.
const (
	allArguments  = -1
	firstArgument = 1
)

// named refuses arguments that cannot be names, besides what check refuses. In a path of the
// API they would lead somewhere else.
func named(count int, check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return err
		}
		for i, name := range given {
			if i == count {
				break
			}
			switch name {
			case "":
				return fmt.Errorf("argument %d is empty where a name or an id belongs; is a variable of your shell not set?", i+1)
			case ".", "..":
				return fmt.Errorf("%q is no name or id", name)
			}
		}
		return nil
	}
}

// streams are the three streams of a command.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

func streamsOf(cmd *cobra.Command) streams {
	return streams{in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
}

// warn tells the person about something that does not stop the command.
func (s streams) warn(format string, args ...any) {
	if _, err := fmt.Fprintf(s.err, "wrenn: "+format+"\n", args...); err != nil {
		slog.Debug("cannot write to standard error", "error", err)
	}
}

func newVersion(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionOf(a.version)
			if a.json {
				return printJSON(cmd.OutOrStdout(), v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "wrenn %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch)
			return err
		},
	}, takes(0, 0, "version takes no arguments"))
}

// isFile returns w's file when it is one.
func isFile(w any) (*os.File, bool) {
	f, ok := w.(*os.File)
	return f, ok
}
