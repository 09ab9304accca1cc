// Command runtime measures checkpoints and restores of the gVisor driver by itself, and
// beside each figure the bare commands of the same runsc on the same sandbox, taken in
// turns in the same run. It must not know of anything above the driver: what a pause or a
// resume costs as a whole is measured elsewhere.
//
// It needs root, the built programs, the base image and an otherwise idle machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

// limit bounds the whole run.
const limit = 10 * time.Minute

// options are the flags.
type options struct {
	bin, images, scratch string
	rounds               int
	copies               int
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the built runsc and envd")
	flag.StringVar(&o.images, "images", filepath.Join(".cache", "images"), "directory of the built images")
	flag.StringVar(&o.scratch, "scratch", "/var/tmp", "directory, on the disk to measure with, to make a scratch directory in")
	flag.IntVar(&o.rounds, "rounds", 15, "how often to measure each thing")
	flag.IntVar(&o.copies, "copies", 8, "how many copies to restore side by side")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-runtime:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "guest\twhat\tdriver\tbare runsc\tratio")
	for _, memoryMB := range []int{0, 256} {
		m, err := measure(ctx, o, memoryMB)
		if err != nil {
			return err
		}
		guest := "small"
		if memoryMB > 0 {
			guest = fmt.Sprintf("%d MiB touched", memoryMB)
		}
		for _, r := range []struct {
			what       string
			ours, bare times
		}{
			{"checkpoint, then ended", m.checkpoint[driver], m.checkpoint[bare]},
			{"checkpoint, running on: stopped", m.live[driver], m.live[bare]},
			{"restore, until the guest answers", m.restore[driver], m.restore[bare]},
			{fmt.Sprintf("%d restores side by side, until all answer", o.copies), m.copies, nil},
		} {
			fmt.Fprintf(table, "%s\t%s\t%v\t%v\t%s\n", guest, r.what, r.ours, r.bare, ratio(r.ours, r.bare))
		}
	}
	return table.Flush()
}

// times are measurements of one thing.
type times []time.Duration

func (t times) median() time.Duration {
	sorted := slices.Clone(t)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

// String is the median and the range.
func (t times) String() string {
	if len(t) == 0 {
		return "-"
	}
	return fmt.Sprintf("%d ms (%d-%d)", t.median().Milliseconds(), slices.Min(t).Milliseconds(), slices.Max(t).Milliseconds())
}

func ratio(ours, bare times) string {
	if len(bare) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", float64(ours.median())/float64(bare.median()))
}
