package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func newRun(a *app) *cobra.Command {
	var sandbox sandboxFlags
	var f commandFlags
	var keep bool
	cmd := command(&cobra.Command{
		Use:   "run [flags] -- CMD [ARG…]",
		Short: "Run a command in a sandbox of its own",
		Long: `Creates a sandbox, runs one program in it with live streams, destroys the sandbox and ends with
the program's exit code. The sandbox is destroyed however the run ends, Ctrl-C included,
unless --keep is given. The program is not a shell line; for that use: sh -c 'LINE'.`,
		Example: `  wrenn run -- python3 -c 'print(6 * 7)'
  wrenn run --memory 2G --timeout 10m -- sh -c 'git clone "$1" /tmp/x && make -C /tmp/x' sh https://example.org/x.git`,
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := sandbox.request(cmd)
			if err != nil {
				return err
			}
			s, err := connect()
			if err != nil {
				return err
			}
			to := streamsOf(cmd)
			created, err := s.create(cmd.Context(), want, to.err)
			if err != nil {
				return err
			}
			start := clientMessage{Cmd: args[0], Args: args[1:], Cwd: f.cwd, TimeoutSec: int64(f.timeout)}
			ran := a.exec(cmd.Context(), s, created.ID, start, f.stdin(cmd.InOrStdin()), to)
			if keep {
				to.warn("sandbox %s is kept", created.ID)
				return ran
			}
			return a.finish(cmd.Context(), s, created.ID, ran, to)
		},
	}, takes(1, 0, "run wants a command: run -- CMD"))
	sandbox.shape(cmd.Flags())
	f.register(cmd.Flags())
	cmd.Flags().BoolVar(&keep, "keep", false, "do not destroy the sandbox afterwards")
	return commandFollows(cmd)
}

// finish destroys the sandbox of a run that ended with ran. A sandbox that stays behind
// is a failure of ours, but never hides how the command itself ended.
func (a *app) finish(ctx context.Context, s *server, id string, ran error, to streams) error {
	if errors.Is(ran, context.Canceled) {
		to.warn("stopped; destroying sandbox %s", id)
	}
	err := s.destroy(ctx, id)
	if err == nil {
		return ran
	}
	var status *statusError
	if errors.As(ran, &status) {
		to.warn("%s", err)
		return ran
	}
	if ran == nil {
		return fmt.Errorf("the command succeeded, but %w", err)
	}
	return errors.Join(ran, err)
}
