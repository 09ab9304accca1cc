package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func newSnapshot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Make templates of running sandboxes",
		Long: `A snapshot is a sandbox as it was at one moment, with its memory and its running processes.
The sandbox keeps running. Create others from it: wrenn create --template NAME`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageErrorf(cmd, "unknown command %q for snapshot%s", args[0], suggestions(cmd, args[0]))
		},
	}
	cmd.AddCommand(newSnapshotCreate(a), newSnapshotList(a), newSnapshotRemove(a), newSnapshotPrune(a))
	return cmd
}

func newSnapshotCreate(a *app) *cobra.Command {
	var overwrite bool
	cmd := command(&cobra.Command{
		Use:     "create ID [NAME]",
		Short:   "Write a running sandbox down and print the snapshot's name",
		Example: "  wrenn snapshot create sb0c9f4kq2m7x1v8t3z5wd web-ready",
		RunE: func(cmd *cobra.Command, args []string) error {
			want := api.CreateSnapshotRequest{SandboxID: args[0]}
			if len(args) > 1 {
				want.Name = args[1]
			}
			s, err := connect()
			if err != nil {
				return err
			}
			stop := spin(cmd.ErrOrStderr(), "writing the sandbox down")
			made, err := decode[api.Template](s.api.CreateSnapshot(cmd.Context(), &api.CreateSnapshotParams{Overwrite: overwrite}, want))
			stop()
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), made)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), made.Name)
			return err
		},
	}, named(allArguments, takes(1, 2, "snapshot create wants a sandbox's id, and may have a name")))
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "replace the snapshot of that name when the new one is complete")
	return cmd
}

func newSnapshotList(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the snapshots, newest first",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			list, err := s.snapshots(cmd)
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			now := time.Now()
			var rows [][]string
			for _, t := range list {
				rows = append(rows, []string{t.Name, snapshotState(t), byteSize(t.SizeBytes), cmp.Or(t.Template, "-"), cmp.Or(t.SandboxID, "-"), age(now, t.CreatedAt)})
			}
			return printTable(cmd.OutOrStdout(), []string{"NAME", "STATE", "SIZE", "TEMPLATE", "SANDBOX", "AGE"}, rows)
		},
	}, takes(0, 0, "snapshot ls takes no arguments"))
}

func snapshotState(t api.Template) string {
	switch {
	case t.Missing:
		return "missing"
	case t.Damaged:
		return "damaged"
	}
	return "ready"
}

func (s *server) snapshots(cmd *cobra.Command) ([]api.Template, error) {
	return decode[[]api.Template](s.api.ListSnapshots(cmd.Context(), &api.ListSnapshotsParams{Type: api.SnapshotTemplate}))
}

func newSnapshotRemove(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:   "rm NAME…",
		Short: "Delete snapshots; sandboxes made from them stay",
		RunE: func(cmd *cobra.Command, names []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			gone, err := removeSnapshots(cmd, s, names)
			return errors.Join(a.printRemoved(cmd, gone), err)
		},
	}, named(allArguments, takes(1, 0, "snapshot rm wants snapshots' names or ids")))
}

// removeSnapshots deletes snapshots and returns those that are gone.
func removeSnapshots(cmd *cobra.Command, s *server, names []string) (removed []string, err error) {
	stop := spin(cmd.ErrOrStderr(), "deleting")
	gone, errs := []string{}, []error{}
	for _, name := range names {
		if err := discard(s.api.DeleteSnapshot(cmd.Context(), name)); err != nil {
			errs = append(errs, fmt.Errorf("delete %s: %w", name, err))
			continue
		}
		gone = append(gone, name)
	}
	stop()
	return gone, errors.Join(errs...)
}

func (a *app) printRemoved(cmd *cobra.Command, gone []string) error {
	if a.json {
		return printJSON(cmd.OutOrStdout(), map[string][]string{"removed": gone})
	}
	for _, name := range gone {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), name); err != nil {
			return err
		}
	}
	return nil
}

func newSnapshotPrune(a *app) *cobra.Command {
	var keep int
	var older AgeFlag
	var dryRun bool
	cmd := command(&cobra.Command{
		Use:   "prune (--keep N | --older-than AGE) [--dry-run]",
		Short: "Delete snapshots by their number or their age",
		Long: `Deletes all snapshots but the newest ones (--keep), or those that were made too long ago
(--older-than). With both a snapshot goes only when both say so: it is old, and not one of
the newest. ("wrenn up --snapshot-max-count" and "--snapshot-max-age" are limits: there a
snapshot goes when either says so.)`,
		Example: `  wrenn snapshot prune --keep 5 --dry-run
  wrenn snapshot prune --older-than 7d`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			byNumber, byAge := cmd.Flags().Changed("keep"), cmd.Flags().Changed("older-than")
			if !byNumber && !byAge || keep < 0 {
				return usageErrorf(cmd, "prune wants --keep N, --older-than AGE or both")
			}
			s, err := connect()
			if err != nil {
				return err
			}
			list, err := s.snapshots(cmd)
			if err != nil {
				return err
			}
			// By their ids: the name of one may be that of a new one by now.
			names, ids := map[string]string{}, []string{}
			for _, t := range prunable(list, byNumber, keep, byAge, time.Now().Add(-time.Duration(older))) {
				ids = append(ids, t.ID)
				names[t.ID] = t.Name
			}
			if !dryRun {
				ids, err = removeSnapshots(cmd, s, ids)
			}
			gone := []string{}
			for _, id := range ids {
				gone = append(gone, names[id])
			}
			return errors.Join(a.printRemoved(cmd, gone), err)
		},
	}, takes(0, 0, "snapshot prune takes no arguments"))
	cmd.Flags().IntVar(&keep, "keep", 0, "how many to keep, the newest ones")
	cmd.Flags().Var(&older, "older-than", "keep those that are younger, such as 12h or 7d")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be deleted")
	return cmd
}

// prunable are the snapshots that are to go: beyond the newest keep, and made before a time.
func prunable(list []api.Template, byNumber bool, keep int, byAge bool, before time.Time) []api.Template {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b api.Template) int { return b.CreatedAt.Compare(a.CreatedAt) })
	var old []api.Template
	for i, t := range list {
		if (!byNumber || i >= keep) && (!byAge || t.CreatedAt.Before(before)) {
			old = append(old, t)
		}
	}
	return old
}

func newTemplates(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:   "templates",
		Short: "List what sandboxes can be created from",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			list, err := decode[[]api.Template](s.api.ListTemplates(cmd.Context()))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			var rows [][]string
			for _, t := range list {
				size := "-"
				if t.SizeBytes > 0 {
					size = byteSize(t.SizeBytes)
				}
				rows = append(rows, []string{t.Name, string(t.Type), fmt.Sprint(t.Vcpus), mebibytes(t.MemoryMb), size})
			}
			return printTable(cmd.OutOrStdout(), []string{"NAME", "TYPE", "VCPUS", "MEMORY", "SIZE"}, rows)
		},
	}, takes(0, 0, "templates takes no arguments"))
}

// AgeFlag is a flag's duration that may be days: "90m", "12h", "7d".
type AgeFlag time.Duration

func (f *AgeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return time.Duration(*f).String()
}

// Type is the placeholder of the help text.
func (f *AgeFlag) Type() string { return "AGE" }

// Set reads an age.
func (f *AgeFlag) Set(text string) error {
	const day, most = 24 * time.Hour, 100 * 365
	var days int
	if n, err := fmt.Sscanf(text, "%dd", &days); err == nil && n == 1 && fmt.Sprintf("%dd", days) == text && days >= 0 && days <= most {
		*f = AgeFlag(time.Duration(days) * day)
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return fault.New(fault.InvalidRequest, "want an age such as 90m, 12h or 7d")
	}
	*f = AgeFlag(d)
	return nil
}
