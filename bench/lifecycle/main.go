// Command lifecycle measures pausing, resuming, snapshots, forks and crowds of a Wrenn that
// it starts on this machine, end to end through the public API, and beside each figure bare
// runsc checkpoint and restore, taken in turns in the same run. Between the figures it
// checks that nothing is lost in the guests and that nothing is left on the host.
//
// It is a client like any other and must know nothing of the floors. It takes about ten
// minutes, needs root and an otherwise idle machine, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/bare"
	"github.com/wrenn-sandbox/wrenn/bench/product"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

// limit bounds the whole run.
const limit = 30 * time.Minute

// options are the flags.
type options struct {
	bin, images, scratch string
	plot                 string
	markdown             bool
	only                 string
	rounds               int
	copies               int
	crowd                int
	atOnce               int
	cycled               int
	cycles               int
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the built programs")
	flag.StringVar(&o.images, "images", filepath.Join(".cache", "images"), "directory of the built images")
	flag.StringVar(&o.scratch, "scratch", "/var/tmp", "directory, on the disk to measure with, to make a scratch directory in")
	flag.StringVar(&o.plot, "plot", "", "file to write a plot (SVG) of the times of pauses and resumes to")
	flag.BoolVar(&o.markdown, "markdown", false, "print the table as a document has it")
	flag.StringVar(&o.only, "only", "", "measure only what this expression matches: small, touched, warm, forks, crowd, cycles")
	flag.IntVar(&o.rounds, "rounds", 15, "how often to pause, resume and snapshot each guest")
	flag.IntVar(&o.copies, "copies", 8, "how many forks to make side by side")
	flag.IntVar(&o.crowd, "crowd", 200, "how many idle sandboxes to have at once")
	flag.IntVar(&o.atOnce, "at-once", 8, "how many of them to create at once")
	flag.IntVar(&o.cycled, "cycled", 10, "how many sandboxes to pause and resume at once")
	flag.IntVar(&o.cycles, "cycles", 100, "how often to do that")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/lifecycle:", err)
		os.Exit(1)
	}
}

// bench is what the measurements share.
type bench struct {
	options
	dir    string // of its own, removed at the end
	server *product.Server
	peer   *bare.Peer
	table  report.Table
	curves []curve
}

const legend = `The raw peer is bare runsc of the same build with the same image and limits and the same programs in it, the guest
daemon too, in turns with Wrenn: of a pause, runsc checkpoint, which syncs nothing to the disk, and in a row of its own with its files then synced; of a resume, runsc create + restore in a
network namespace that stands ready, until the program has written a byte; of a snapshot, runsc checkpoint
--leave-running; of forks, one such checkpoint and the restores side by side. A pause is from the request to its answer,
with all on the disk; a resume, 0.2 s later, from the request to the first output of a command. How long a sandbox stands still is
what a program inside sees that looks at the clock each millisecond.
`

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it needs root, as `wrenn up` does")
	}
	only, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	for _, path := range []*string{&o.bin, &o.images} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	b := &bench{options: o}
	if b.dir, err = os.MkdirTemp(o.scratch, "wrenn-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	server := product.Options{
		Bin: o.bin, Images: o.images, Args: []string{"--on-stop", "kill", "--warm", fmt.Sprintf("%s=%d", warmName, warmKept)},
	}
	image, err := product.BaseImage(ctx, server)
	if err != nil {
		return err
	}
	if b.peer, err = bare.New(o.bin, b.dir, image); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.peer.Close()) }()
	if err := b.shareDaemon(); err != nil {
		return err
	}
	if b.server, err = product.Start(ctx, server, b.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(b.server.Explain(err), b.server.Stop()) }()

	fmt.Println(report.Machine() + "\n")
	err = report.Measure(ctx, only,
		report.Part{Name: "small", Measure: b.small}, report.Part{Name: "touched", Measure: b.touched},
		report.Part{Name: "warm", Measure: b.warm}, report.Part{Name: "forks", Measure: b.forks},
		report.Part{Name: "crowd", Measure: b.many}, report.Part{Name: "cycles", Measure: b.cycle})
	if o.markdown {
		b.table.Markdown(os.Stdout)
	} else {
		b.table.Print(os.Stdout, legend)
	}
	if o.plot != "" && len(b.curves) > 0 {
		err = errors.Join(err, os.WriteFile(o.plot, plot(b.curves), 0o644))
	}
	return err
}
