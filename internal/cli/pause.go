package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/api"
)

// sideBySide is how many sandboxes one command works on at a time.
const sideBySide = 8

func newPause(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:   "pause ID…",
		Short: "Pause sandboxes: all that is in them goes to the disk and waits there",
		Long: `Writes memory, processes and disk of sandboxes down and frees everything else that they hold.
When the command has ended they are safe on the disk, and survive restarts of the server
and of the machine. wrenn resume goes on where they were.`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			return a.passAll(cmd, ids, "pausing", func(ctx context.Context, s *server, id string) (api.Sandbox, error) {
				return decode[api.Sandbox](s.api.PauseSandbox(ctx, id))
			})
		},
	}, named(allArguments, takes(1, 0, "pause wants sandboxes' ids")))
}

func newResume(a *app) *cobra.Command {
	var wait secondsFlag
	cmd := command(&cobra.Command{
		Use:   "resume ID…",
		Short: "Resume paused sandboxes where they were",
		RunE: func(cmd *cobra.Command, ids []string) error {
			return a.passAll(cmd, ids, "resuming", func(ctx context.Context, s *server, id string) (api.Sandbox, error) {
				return decode[api.Sandbox](s.api.ResumeSandbox(ctx, id, api.ResumeRequest{WaitSec: int64(wait)}))
			})
		},
	}, named(allArguments, takes(1, 0, "resume wants sandboxes' ids")))
	addWait(cmd, &wait)
	return cmd
}

func addWait(cmd *cobra.Command, wait *secondsFlag) {
	cmd.Flags().Var(wait, "wait", "how long to wait for room on a full host, such as 30s (default not at all)")
}

// passAll does something to sandboxes side by side and prints the ids of those to which it
// was done, in their order. The others go on when it fails for one.
func (a *app) passAll(cmd *cobra.Command, ids []string, doing string, do func(context.Context, *server, string) (api.Sandbox, error)) error {
	s, err := connect()
	if err != nil {
		return err
	}
	stop := spin(cmd.ErrOrStderr(), doing)
	var mu sync.Mutex
	done, failed := map[string]api.Sandbox{}, map[string]error{}
	var g errgroup.Group
	g.SetLimit(sideBySide)
	for _, id := range ids {
		g.Go(func() error {
			sb, err := do(cmd.Context(), s, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[id] = fmt.Errorf("%s: %w", id, err)
			} else {
				done[id] = sb
			}
			return nil // the others go on
		})
	}
	_ = g.Wait() // no function returns an error
	stop()
	list, errs := []api.Sandbox{}, []error{}
	for _, id := range ids {
		if err := failed[id]; err != nil {
			errs = append(errs, err)
		} else {
			list = append(list, done[id])
		}
	}
	return errors.Join(a.printIDs(cmd, list), errors.Join(errs...))
}

// printIDs prints sandboxes as JSON when that was asked for, and otherwise their ids.
func (a *app) printIDs(cmd *cobra.Command, list []api.Sandbox) error {
	if a.json {
		return printJSON(cmd.OutOrStdout(), list)
	}
	for _, sb := range list {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), sb.ID); err != nil {
			return err
		}
	}
	return nil
}

func newFork(a *app) *cobra.Command {
	var idle secondsFlag
	var count int
	cmd := command(&cobra.Command{
		Use:   "fork ID",
		Short: "Copy a running sandbox with all that runs in it, and print the copies' ids",
		Long: `Makes copies that go on where the sandbox is now, with the same files, memory and processes
and identities of their own. The sandbox itself keeps running.`,
		Example: "  wrenn fork sb0c9f4kq2m7x1v8t3z5wd --count 4",
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 {
				return usageErrorf(cmd, "--count must be at least 1")
			}
			want := api.ForkRequest{Count: count}
			if cmd.Flags().Changed("timeout") {
				want.TimeoutSec = (*int64)(&idle)
			}
			s, err := connect()
			if err != nil {
				return err
			}
			stop := spin(cmd.ErrOrStderr(), "copying")
			copies, err := decode[[]api.Sandbox](s.api.ForkSandbox(cmd.Context(), args[0], want))
			stop()
			if err != nil {
				return err
			}
			return a.printIDs(cmd, copies)
		},
	}, named(allArguments, takes(1, 1, "fork wants one sandbox's id")))
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many copies")
	cmd.Flags().Var(&idle, "timeout", "idle timeout of the copies, such as 15m; 0 for none (default the sandbox's)")
	return cmd
}

func newTimeout(a *app) *cobra.Command {
	var idle, deadline secondsFlag
	var onTimeout string
	cmd := command(&cobra.Command{
		Use:   "timeout ID [flags]",
		Short: "Change when a sandbox is paused or destroyed by itself",
		Long: `Sets what is given, counting from now, and leaves the rest. This is the one thing that can
shorten a sandbox's time; using it only ever extends it.`,
		Example: "  wrenn timeout sb0c9f4kq2m7x1v8t3z5wd --timeout 30m --deadline 0",
		RunE: func(cmd *cobra.Command, args []string) error {
			want := api.TimeoutRequest{OnTimeout: api.OnTimeout(onTimeout)}
			if cmd.Flags().Changed("timeout") {
				want.TimeoutSec = (*int64)(&idle)
			}
			if cmd.Flags().Changed("deadline") {
				want.DeadlineSec = (*int64)(&deadline)
			}
			if want == (api.TimeoutRequest{}) {
				return usageErrorf(cmd, "timeout wants at least one of --timeout, --deadline and --on-timeout")
			}
			s, err := connect()
			if err != nil {
				return err
			}
			sb, err := decode[api.Sandbox](s.api.SetTimeout(cmd.Context(), args[0], want))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), sb)
			}
			ends := "never by itself"
			if !sb.EndsAt.IsZero() {
				ends = fmt.Sprintf("%s at %s", sb.OnTimeout, sb.EndsAt.Local().Format(time.RFC3339))
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), ends)
			return err
		},
	}, named(allArguments, takes(1, 1, "timeout wants one sandbox's id")))
	cmd.Flags().Var(&idle, "timeout", "idle timeout, such as 15m; 0 for none")
	cmd.Flags().Var(&deadline, "deadline", "how long from now it may run however busy it is, such as 2h; 0 for ever")
	cmd.Flags().StringVar(&onTimeout, "on-timeout", "", "what happens then: pause or kill")
	return cmd
}
