// Command proxy measures ports on the web of a Wrenn that it starts on this machine: how
// quick a terminal stays while its sandbox serves through the proxy, what the proxy's two
// hops cost beside none and beside nginx's, and what idle WebSockets take.
//
// It is a client like any other. Only to show what it is good for that terminals and
// proxied requests go separate ways it plays the control floor itself, at the host agent's
// socket, once as Wrenn does it and once with both on one HTTP/2 connection. It takes about
// five minutes, needs root and an otherwise idle machine, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/product"
	"github.com/wrenn-sandbox/wrenn/bench/report"
)

const (
	// limit bounds the whole run.
	limit = 20 * time.Minute
	// What the sandbox has, so that it is not what is measured.
	sandboxCPUs   = 2
	sandboxMemory = 1024 // MiB
)

// options are the flags.
type options struct {
	bin, images, scratch string
	plot                 string
	markdown             bool
	only                 string
	serve, load          string
	rounds               int
	echoes               int
	requests             int
	bulk                 int
	idle                 int
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the built programs")
	flag.StringVar(&o.images, "images", filepath.Join(".cache", "images"), "directory of the built images")
	flag.StringVar(&o.scratch, "scratch", "/var/tmp", "directory to make a scratch directory in")
	flag.StringVar(&o.plot, "plot", "", "file to write a plot (SVG) of the terminals' round trips to")
	flag.BoolVar(&o.markdown, "markdown", false, "print the table as a document has it")
	flag.StringVar(&o.only, "only", "", "measure only what this expression matches: terminals, latency, throughput, idle")
	flag.StringVar(&o.serve, "serve", "", "be the server in the sandbox, at this address")
	flag.StringVar(&o.load, "load", "", "make the load on what is at this address, until the input ends")
	flag.IntVar(&o.rounds, "rounds", 3, "how often to measure each thing, in turns")
	flag.IntVar(&o.echoes, "echoes", 400, "how many round trips of a terminal to take in each round")
	flag.IntVar(&o.requests, "requests", 1000, "how many requests to take the latency of in each round")
	flag.IntVar(&o.bulk, "bulk", 256, "how much to download for the throughput in each round, in MiB")
	flag.IntVar(&o.idle, "idle", 2000, "how many idle WebSockets to have at once")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch {
	case o.serve != "":
		err = serve(ctx, o.serve)
	case o.load != "":
		err = makeLoad(ctx, o.load, os.Stdin, os.Stdout)
	default:
		limited, cancel := context.WithTimeout(ctx, limit)
		err = run(limited, o)
		cancel()
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/proxy:", err)
		os.Exit(1)
	}
}

// bench is what the measurements share.
type bench struct {
	options
	dir     string // of its own, removed at the end
	server  *product.Server
	paths   string // the address at which ports are by path
	sandbox api.Sandbox
	table   report.Table
	curves  []curve
}

const legend = `The raw peer of a terminal under load is the same terminal without; of the two hops, a direct connection to the guest.
nginx (proxy_pass, one worker for each processor, keep-alive, buffers in memory) does the same two hops, over a Unix socket
between them. The load is 50 downloads of 2.5 MB/s each, five of whose readers read nothing and five nearly nothing,
20 WebSockets that echo 100 messages a second each, and 200 requests a second; in brackets is what came through. Server
and clients of all this share the processors with what is measured. "By RPC" is the same terminal as the control floor has it, at the host agent's socket.
`

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it needs root, as `wrenn up` does")
	}
	only, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	b := &bench{options: o}
	if b.dir, err = os.MkdirTemp(o.scratch, "wrenn-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.paths, err = freeAddress(ctx); err != nil {
		return err
	}
	server := product.Options{Bin: o.bin, Images: o.images, Args: []string{"--on-stop", "kill", "--proxy-listen", b.paths}}
	if b.server, err = product.Start(ctx, server, b.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(b.server.Explain(err), b.server.Stop()) }()
	if err := b.start(ctx); err != nil {
		return err
	}

	fmt.Println(report.Machine() + "\n")
	err = report.Measure(ctx, only,
		report.Part{Name: "idle", Measure: b.idleSockets}, // while the server is still small
		report.Part{Name: "terminals", Measure: b.terminals},
		report.Part{Name: "latency", Measure: b.latency}, report.Part{Name: "throughput", Measure: b.throughput})
	if o.markdown {
		b.table.Markdown(os.Stdout)
	} else {
		b.table.Print(os.Stdout, legend)
	}
	if o.plot != "" && len(b.curves) > 0 {
		const mode = 0o644
		err = errors.Join(err, os.WriteFile(o.plot, plot(b.curves), mode))
	}
	return err
}

// freeAddress is one on this machine at which nothing listens just now.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
