package cli

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func newList(a *app) *cobra.Command {
	var status, template string
	var metadata pairsFlag
	cmd := command(&cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List the sandboxes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if status != "" && !api.SandboxStatus(status).Valid() {
				return usageErrorf(cmd, "--status %q is none of pending, starting, running, pausing, paused, resuming, stopping, stopped, missing, error", status)
			}
			s, err := connect()
			if err != nil {
				return err
			}
			all, err := s.sandboxes(cmd.Context(), status, template, metadata)
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			now := time.Now()
			var rows [][]string
			for _, sb := range all {
				rows = append(rows, []string{
					sb.ID, string(sb.Status), sb.Template, fmt.Sprint(sb.Vcpus), mebibytes(sb.MemoryMb), age(now, sb.CreatedAt),
				})
			}
			return printTable(cmd.OutOrStdout(), []string{"ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "AGE"}, rows)
		},
	}, takes(0, 0, "ls takes no arguments; for one sandbox use `wrenn get ID`"))
	cmd.Flags().StringVar(&status, "status", "", "only sandboxes in this status, such as running")
	cmd.Flags().StringVarP(&template, "template", "t", "", "only sandboxes made from this template")
	cmd.Flags().Var(&metadata, "metadata", "only sandboxes with this label; may be repeated")
	return cmd
}

func newGet(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:   "get ID",
		Short: "Show one sandbox",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			sb, err := decode[api.Sandbox](s.api.GetSandbox(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), sb)
			}
			return printTable(cmd.OutOrStdout(), []string{"id", sb.ID}, details(sb))
		},
	}, named(allArguments, takes(1, 1, "get wants one sandbox's id")))
}

// details are the rows that describe a sandbox; what it does not have is left out.
func details(sb api.Sandbox) [][]string {
	when := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.Local().Format(time.RFC3339)
	}
	limit, deadline := "", ""
	if sb.TimeoutSec > 0 {
		limit = fmt.Sprintf("%s idle, then %s", time.Duration(sb.TimeoutSec)*time.Second, sb.OnTimeout)
	}
	if sb.DeadlineSec > 0 {
		deadline = fmt.Sprintf("%s, then %s", time.Duration(sb.DeadlineSec)*time.Second, sb.OnTimeout)
	}
	all := [][]string{
		{"status", string(sb.Status)},
		{"reason", sb.Reason},
		{"template", sb.Template},
		{"vcpus", fmt.Sprint(sb.Vcpus)},
		{"memory", mebibytes(sb.MemoryMb)},
		{"disk", mebibytes(sb.DiskSizeMb)},
		{"runtime", sb.Runtime},
		{"guest ip", sb.GuestIP},
		{"timeout", limit},
		{"deadline", deadline},
		{"created", when(sb.CreatedAt)},
		{"last active", when(sb.LastActiveAt)},
		{"ends", when(sb.EndsAt)},
		{"paused", when(sb.PausedAt)},
		{"traffic token", sb.TrafficToken},
		{"host mask", sb.MaskRequestHost},
	}
	if sb.SnapshotBytes > 0 {
		all = append(all, []string{"on the disk", byteSize(sb.SnapshotBytes)})
	}
	for _, key := range slices.Sorted(maps.Keys(sb.Metadata)) {
		all = append(all, []string{"metadata." + key, cmp.Or(sb.Metadata[key], `""`)})
	}
	var rows [][]string
	for _, row := range all {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	return rows
}

func newRemove(a *app) *cobra.Command {
	var all bool
	cmd := command(&cobra.Command{
		Use:   "rm ID… | --all",
		Short: "Destroy sandboxes",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) > 0) {
				return usageErrorf(cmd, "rm wants sandboxes' ids, or --all")
			}
			s, err := connect()
			if err != nil {
				return err
			}
			if all {
				if ids, err = s.everyID(cmd); err != nil {
					return err
				}
			}
			gone, err := s.removeAll(cmd, ids, all)
			if a.json {
				return errors.Join(printJSON(cmd.OutOrStdout(), map[string][]string{"removed": gone}), err)
			}
			for _, id := range gone {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), id); err != nil {
					return err
				}
			}
			return err
		},
	}, named(allArguments, cobra.ArbitraryArgs))
	cmd.Flags().BoolVar(&all, "all", false, "destroy every sandbox")
	return cmd
}

func (s *server) everyID(cmd *cobra.Command) ([]string, error) {
	all, err := s.sandboxes(cmd.Context(), "", "", nil)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, sb := range all {
		ids = append(ids, sb.ID)
	}
	return ids, nil
}

// removeAll destroys sandboxes side by side and returns those that are gone, in the order
// of ids, and an error that tells of each other one.
func (s *server) removeAll(cmd *cobra.Command, ids []string, goneIsFine bool) ([]string, error) {
	defer spin(cmd.ErrOrStderr(), "destroying")()
	var mu sync.Mutex
	failed := map[string]error{}
	var g errgroup.Group
	g.SetLimit(sideBySide)
	for _, id := range ids {
		g.Go(func() error {
			err := discard(s.api.DeleteSandbox(cmd.Context(), id))
			if err == nil || goneIsFine && fault.Is(err, fault.NotFound) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			failed[id] = fmt.Errorf("destroy %s: %w", id, err)
			return nil // the others go on
		})
	}
	_ = g.Wait() // no function returns an error
	gone, errs := []string{}, []error{}
	for _, id := range ids {
		if err := failed[id]; err != nil {
			errs = append(errs, err)
		} else {
			gone = append(gone, id)
		}
	}
	return gone, errors.Join(errs...)
}
