package cli

import (
	"context"
	"fmt"

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
	}, named(allArguments, takes(2, 2, "kill wants a sandbox's id and the pid or tag of a process")))
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
