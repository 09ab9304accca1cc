// Command bench measures a Wrenn that it starts on this machine, end to end through the
// public API, and beside each figure the raw thing underneath, taken in turns in the same
// run: bare runsc for starts and commands, a plain HTTP copy for files.
//
// It is a client like any other and must know nothing of the floors. It takes a minute or
// two, needs root and an otherwise idle machine, and leaves nothing behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/bare"
	"github.com/wrenn-sandbox/wrenn/bench/product"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

// limit bounds the whole run.
const limit = 10 * time.Minute

// options are the flags.
type options struct {
	bin       string
	images    string
	starts    int
	execs     int
	crowd     int
	atOnce    int
	transfers int
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the built programs")
	flag.StringVar(&o.images, "images", filepath.Join(".cache", "images"), "directory of the built images")
	flag.IntVar(&o.starts, "starts", 15, "how many sandboxes to start one by one")
	flag.IntVar(&o.execs, "execs", 100, "how many commands to run")
	flag.IntVar(&o.crowd, "crowd", 50, "how many sandboxes to have at once")
	flag.IntVar(&o.atOnce, "at-once", 8, "how many of them to create at once")
	flag.IntVar(&o.transfers, "transfers", 3, "how many times to copy 256 MiB each way")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// product is what the options say of the server.
func (o options) product() product.Options {
	return product.Options{Bin: o.bin, Images: o.images, Args: []string{"--on-stop", "kill"}}
}

// legend says what is not in the table.
const legend = `The raw peer of a start is runsc create + start of the same image with the same limits, in a network namespace
that stands ready, until its first process has written a byte; that of a command is runsc exec; that of a
transfer is a copy over loopback HTTP into, or out of, a file.
`

// bench is what the measurements share.
type bench struct {
	options
	dir    string // of its own, removed at the end
	server *product.Server
	peer   *bare.Peer
	table  report.Table
}

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it needs root, as `wrenn up` does")
	}
	for _, path := range []*string{&o.bin, &o.images} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	b := &bench{options: o}
	if b.dir, err = os.MkdirTemp("", "wrenn-bench-"); err != nil {
		return err
	}
	defer func() { err = first(err, os.RemoveAll(b.dir)) }()
	image, err := product.BaseImage(ctx, o.product())
	if err != nil {
		return err
	}
	if b.peer, err = bare.New(o.bin, b.dir, image); err != nil {
		return err
	}
	defer func() { err = first(err, b.peer.Close()) }()
	if b.server, err = product.Start(ctx, o.product(), b.dir); err != nil {
		return err
	}
	defer func() { err = first(err, b.server.Stop()) }()

	fmt.Println(report.Machine() + "\n")
	for _, measure := range []func(context.Context) error{b.starts, b.commands, b.many, b.files} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	b.table.Print(os.Stdout, legend)
	return nil
}

// first returns the first error that is one.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
