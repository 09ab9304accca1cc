package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/profile"
)

// Defaults of `wrenn up`; the flags' help shows them.
const (
	defaultDataDir = "/var/lib/wrenn"
	defaultListen  = "127.0.0.1:7700"
	defaultDomain  = "localhost"
)

const (
	// readHeaderTimeout and idleTimeout are the same on every server of ours. The idle
	// one is longer than that of the load balancers in front of us, so that it is never
	// we who close a connection that one of them is about to use.
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 620 * time.Second

	// stopTimeout bounds a clean stop; what is not done by then is found at the next
	// start.
	stopTimeout = 60 * time.Second
	// drainTimeout bounds how long a server waits for requests in flight when it stops.
	drainTimeout = 3 * time.Second
)

// upOptions are the flags of `wrenn up`.
type upOptions struct {
	dataDir  string
	imageDir string
	listen   string
	domain   string
	// domainScheme is how clients reach the names of the domain, when --domain says so:
	// empty, as they reach the listener.
	domainScheme string
	// proxyListen is the address for ports of sandboxes by path: empty for the API's port
	// and one, noProxyListen for none. proxyURL is where clients see it; empty: there.
	proxyListen, proxyURL string
	tls                   tlsOptions
	json                  bool // print the credentials as JSON
	host                  hostOptions
	control               controlOptions
	// budget is what the listeners may have open; it is no flag.
	budget budget
}

func newUpCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run Wrenn on this machine: the API and the sandboxes",
		Long: `Run Wrenn on this machine: the API and the sandboxes.

The first start builds the base image, which takes about a minute. The address and the
API key are printed, and kept in credentials.json in the data directory and in the
profile of the user who runs this, where the other commands find them.

SIGTERM or Ctrl-C stops Wrenn. Its sandboxes run on, and the next start takes them over;
--on-stop says what else may happen to them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.json = wantsJSON(cmd)
			return up(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dataDir, "data-dir", defaultDataDir, "where images, records and the database are kept")
	f.StringVar(&o.imageDir, "image-dir", "", "where images are kept (default: images in the data directory)")
	f.StringVar(&o.listen, "listen", defaultListen, "address of the API; port 0 takes a free one")
	f.StringVar(&o.domain, "domain", defaultDomain, "domain under which ports of sandboxes are shown, as PORT-SANDBOX.DOMAIN; a port or https:// in it is what clients use, when a proxy of yours is before the listener")
	f.StringVar(&o.proxyListen, "proxy-listen", "", "address for ports of sandboxes as /proxy/SANDBOX/PORT/; none for none (default: the API's port and one)")
	f.StringVar(&o.proxyURL, "proxy-url", "", "where clients see --proxy-listen, when a proxy of yours is before it, such as https://ports.example.com (default: there)")
	o.tls.addFlags(f)
	o.host.addFlags(f)
	o.control.addFlags(f)
	return cmd
}

// resolve makes the directories absolute: names that are derived from them end up in
// records and leases that other processes read.
func (o *upOptions) resolve() error {
	for flag, value := range map[string]string{"data-dir": o.dataDir, "listen": o.listen} {
		if value == "" {
			return fault.New(fault.InvalidRequest, "--%s is empty; name one, or leave the flag out", flag)
		}
	}
	var err error
	if o.dataDir, err = filepath.Abs(o.dataDir); err != nil {
		return err
	}
	if o.imageDir == "" {
		o.imageDir = filepath.Join(o.dataDir, "images")
	}
	if o.imageDir, err = filepath.Abs(o.imageDir); err != nil {
		return err
	}
	if err := o.resolveOutside(); err != nil {
		return err
	}
	if o.tls.byACME() && (o.domain == "" || o.domain == defaultDomain) {
		return fault.New(fault.InvalidRequest, "--acme needs a domain of yours; name it with --domain")
	}
	o.host.dataDir, o.host.imageDir = o.dataDir, o.imageDir
	return errors.Join(o.host.check(), o.control.check(), o.tls.check())
}

// up runs all floors on this machine until ctx ends.
func up(ctx context.Context, o upOptions, stdout, stderr io.Writer) (err error) {
	if err := o.resolve(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fault.New(fault.Forbidden, "wrenn up needs root: it makes network namespaces and cgroups; run it with sudo")
	}
	// The address first: whether it is free is known at once, the rest takes a while.
	listener, err := listen(ctx, o.listen, busyTime)
	if err != nil {
		return fault.New(fault.InvalidRequest, "cannot listen on %s (%v); choose another address with --listen", o.listen, errors.Unwrap(err))
	}
	defer listener.Close()
	paths, err := listenForPaths(ctx, o, listener.Addr())
	if err != nil {
		return err
	}
	defer paths.Close()

	log := slog.New(slog.NewTextHandler(stderr, nil))
	if o.budget, err = fileBudget(log); err != nil {
		return err
	}
	showProgress, endProgress := imageProgress(stderr)
	host, err := startHost(ctx, o.host, log, showProgress)
	endProgress()
	if err != nil {
		return err
	}
	stopped := false
	closeHost := func() error {
		if stopped {
			return nil
		}
		stopped = true
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return host.close(stop)
	}
	defer func() { err = errors.Join(err, closeHost()) }()

	control, err := startControl(ctx, o, host.socket, host.proxy, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.close()) }()
	web, err := serveWeb(ctx, o, control, listener, paths, log)
	if err != nil {
		return err
	}

	credentials := profile.Profile{APIURL: o.origin(listener.Addr()), APIKey: control.key}
	if err := announce(o, credentials, control.edge.Patterns(), stdout, log); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case err = <-web.served:
	case err = <-host.served:
	case err = <-control.failed:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	control.beginStop(stop)
	err = errors.Join(err, web.shutdown(stop))
	// The host goes before the control floor, which then still hears how each sandbox ended.
	return errors.Join(err, closeHost())
}

// announce keeps the credentials and tells the person where Wrenn is, and where the ports
// of sandboxes are.
func announce(o upOptions, p profile.Profile, ports []string, stdout io.Writer, log *slog.Logger) error {
	path := credentialsPath(o.dataDir)
	// What is there is not written again: a start must work on a full disk, too.
	if kept, err := profile.Read(path); err != nil || kept != p {
		if err := profile.Write(path, p); err != nil {
			return err
		}
	}
	if err := writeProfile(p); err != nil {
		log.Warn("the client profile was not written; the other commands need WRENN_BASE_URL and WRENN_API_KEY", "error", err)
	}
	if o.json {
		return json.NewEncoder(stdout).Encode(struct {
			profile.Profile
			Ports []string `json:"ports"`
		}{p, ports})
	}
	if len(ports) == 0 {
		ports = []string{"not on the web: there is neither --domain nor --proxy-listen"}
	}
	_, err := fmt.Fprintf(stdout, `Wrenn is ready.

  API      %s  (docs: %s/docs)
  API key  %s  (kept in %s)
  Ports    %s

  wrenn run -- uname -a
`, p.APIURL, p.APIURL, p.APIKey, path, strings.Join(ports, "\n           "))
	return err
}

// writeProfile makes this server the one that the client commands of this user call. The
// profile of a server elsewhere is left alone: only its owner has its key.
func writeProfile(p profile.Profile) error {
	path, err := profile.Path()
	if err != nil {
		return err
	}
	if old, err := profile.Read(path); err == nil && old.APIURL != p.APIURL && !onThisMachine(old.APIURL) {
		return fault.New(fault.Conflict, "%s is for the server %s; remove it to use this one", path, old.APIURL)
	}
	return profile.Write(path, p)
}

// onThisMachine reports whether a server's address is one of this machine's own.
func onThisMachine(apiURL string) bool {
	u, err := url.Parse(apiURL)
	if err != nil {
		return true // it is of no use to anybody
	}
	if u.Hostname() == "localhost" {
		return true
	}
	ip := net.ParseIP(u.Hostname())
	if ip == nil {
		return false
	}
	own, err := net.InterfaceAddrs()
	return ip.IsLoopback() || err == nil && slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}

// wantsJSON reports whether the person asked for --json, which every command has.
func wantsJSON(cmd *cobra.Command) bool {
	asked, err := cmd.Flags().GetBool("json")
	return err == nil && asked
}

// credentialsPath is where the address and the first key are kept.
func credentialsPath(dataDir string) string { return filepath.Join(dataDir, "credentials.json") }

// reachable is the address that a client on this machine uses for a listener.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if ok && tcp.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", fmt.Sprint(tcp.Port))
	}
	return addr.String()
}

func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// shutdown lets requests in flight end for a moment, and then cuts them.
func shutdown(ctx context.Context, server *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err == nil {
		return nil
	}
	return server.Close()
}
