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
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
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

// bench is what the measurements share.
type bench struct {
	options
	dir    string // of its own, removed at the end
	server *server
	peer   *peer
	table  table
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
	image, err := baseImage(ctx, o)
	if err != nil {
		return err
	}
	if b.peer, err = newPeer(o, b.dir, image); err != nil {
		return err
	}
	defer func() { err = first(err, b.peer.close()) }()
	if b.server, err = startServer(ctx, o, b.dir); err != nil {
		return err
	}
	defer func() { err = first(err, b.server.stop()) }()

	fmt.Printf("%s, %d CPUs, %s\n\n", machine(), runtime.NumCPU(), time.Now().Format(time.DateOnly))
	for _, measure := range []func(context.Context) error{b.starts, b.commands, b.many, b.files} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	b.table.print(os.Stdout)
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

// machine describes what the figures are of.
func machine() string {
	var name syscall.Utsname
	if err := syscall.Uname(&name); err != nil {
		return "unknown kernel"
	}
	var release strings.Builder
	for _, c := range name.Release {
		if c == 0 {
			break
		}
		release.WriteByte(byte(c))
	}
	return "Linux " + release.String()
}

// baseImage returns the path of the base image, which is built when it is not there.
func baseImage(ctx context.Context, o options) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(o.bin, "wrenn"), "image", "build", "--image-dir", o.images)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the base image: %w", err)
	}
	const path = 1
	fields := strings.Fields(string(out))
	if len(fields) <= path {
		return "", fmt.Errorf("`wrenn image build` said %q", out)
	}
	return fields[path], nil
}
