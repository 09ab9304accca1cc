// Command guest measures the guest daemon by itself, on this machine and without a sandbox
// around it, and beside each figure others that do the same, taken in turns in the same
// run: the bare thing underneath (fork and exec, a pipe, sshd, a plain HTTP copy) and, when
// PEER_ENVD names its binary, E2B's envd, which speaks the same protocol.
//
// All of it runs in namespaces that are gone at the end, over their loopback only. The
// command is a client of the guest contract and must know nothing of the daemon's code. It
// needs root, an otherwise idle machine and about a minute and a half.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limit bounds the whole run.
const limit = 5 * time.Minute

// peerVariable names E2B's envd, a binary that is not ours to bring.
const peerVariable = "PEER_ENVD"

// The ports of the two daemons, in a network of their own.
const (
	loopback = "127.0.0.1"
	oursPort = "49983"
	peerPort = "49984"
)

// options are the flags.
type options struct {
	envd   string
	peer   string // empty: none was given
	sshd   string
	out    string
	execs  int
	echoes int
	rounds int
	crowd  int
	only   *regexp.Regexp
}

func main() {
	o := options{peer: os.Getenv(peerVariable)}
	flag.StringVar(&o.envd, "envd", filepath.Join("bin", "envd"), "the guest daemon to measure")
	flag.StringVar(&o.sshd, "sshd", "/usr/sbin/sshd", "the sshd to compare terminals with; it may be missing")
	flag.StringVar(&o.out, "markdown", "", "file to write the table to as Markdown as well")
	flag.IntVar(&o.execs, "execs", 500, "how many commands to run one by one")
	// Of fewer the hundredth part is what the machine did in a few of its moments.
	flag.IntVar(&o.echoes, "echoes", 5000, "how many characters to type")
	flag.IntVar(&o.rounds, "rounds", 5, "how many times to move much data")
	flag.IntVar(&o.crowd, "crowd", 100, "how many commands to have print at once")
	o.only = regexp.MustCompile("")
	flag.Func("only", "measure only what matches this `expression`: idle, commands, terminals, output, crowd, files, idle again", func(text string) (err error) {
		o.only, err = regexp.Compile(text)
		return err
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, limit)
	var err error
	if isolated() {
		err = run(ctx, o)
	} else {
		err = isolate(ctx)
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-guest:", err)
		os.Exit(1)
	}
}

// bench is what the measurements share.
type bench struct {
	options
	dir   string // in memory, gone with the namespaces
	ours  *daemon
	peer  *daemon // nil: none was given
	table table
}

func run(ctx context.Context, o options) (err error) {
	for _, path := range []*string{&o.envd, &o.peer, &o.out} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	// Opened before the mounts, which may hide the directory that it is in.
	markdown := io.Discard
	if o.out != "" {
		file, err := os.Create(o.out)
		if err != nil {
			return err
		}
		defer file.Close()
		markdown = file
	}
	b := &bench{options: o}
	if b.dir, err = prepare(); err != nil {
		return fmt.Errorf("prepare the namespaces: %w", err)
	}
	if b.ours, err = startDaemon(ctx, net.JoinHostPort(loopback, oursPort), o.envd, "-listen", net.JoinHostPort(loopback, oursPort)); err != nil {
		return err
	}
	defer func() { err = first(err, b.ours.stop()) }()
	if o.peer != "" {
		// Outside of a microVM it must not look for that machine's metadata; cgroups are
		// left alone because ours has none outside of a sandbox either.
		if b.peer, err = startDaemon(ctx, net.JoinHostPort(loopback, peerPort), o.peer, "-isnotfc", "-no-cgroups", "-port", peerPort); err != nil {
			return err
		}
		defer func() { err = first(err, b.peer.stop()) }()
	}
	return b.measure(ctx, markdown)
}

func (b *bench) measure(ctx context.Context, markdown io.Writer) error {
	for _, d := range b.daemons() {
		if err := d.ready(ctx); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"idle", b.idle}, {"commands", b.commands}, {"terminals", b.terminals}, {"output", b.output},
		{"crowd", b.together}, {"files", b.files}, {"idle again", b.idleAgain},
	} {
		if !b.only.MatchString(step.name) {
			continue
		}
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("measure %s: %w", step.name, err)
		}
	}
	heading := fmt.Sprintf("%s, %d CPUs", machine(), runtime.NumCPU())
	fmt.Printf("%s\n\n", heading)
	if b.peer == nil {
		fmt.Printf("No peer given: %s may name the binary of E2B's envd.\n\n", peerVariable)
	}
	b.table.print(os.Stdout)
	return b.table.markdown(markdown, heading)
}

// daemons are those to measure: ours and, when there is one, its peer.
func (b *bench) daemons() []*daemon {
	if b.peer == nil {
		return []*daemon{b.ours}
	}
	return []*daemon{b.ours, b.peer}
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
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(name.Release[:])
}
