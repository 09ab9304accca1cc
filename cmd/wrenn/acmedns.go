package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/libdns"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/wrenn-sandbox/wrenn/internal/control/dnsupdate"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// dnsByUpdates is the one way of --acme-dns.
	dnsByUpdates = "rfc2136"
	// challengeLabel begins the name at which authorities look (RFC 8555, section 8.4).
	challengeLabel = "_acme-challenge."
	// challengeTTL is how long others may keep a record that is good for one challenge.
	challengeTTL = time.Minute
)

// The zone is tried before an authority is asked for anything, soon at first: somebody is
// about to set it up.
const (
	zoneRetryFirst = time.Second
	zoneRetryMost  = 5 * time.Minute
	zoneTryTime    = 30 * time.Second
)

// dnsOptions is how a domain is shown to be ours in the DNS. The zero value is not at all.
type dnsOptions struct {
	by string // empty, or dnsByUpdates
	// server is the zone's primary server, and keyFile has the key that it takes.
	server, keyFile string
	// name is where the challenge's record is put; empty: where authorities look first.
	name string
	// resolvers are asked for the zone and whether the record is there; empty: the
	// machine's own and the zone's servers.
	resolvers []string
}

// addFlags adds the flags that are about the DNS.
func (o *dnsOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.by, "acme-dns", "", "obtain certificates for --domain and all names under it at the start, and show in the DNS that it is yours: rfc2136 for dynamic updates of the zone (default: one for each name, by port 443)")
	f.StringVar(&o.server, "acme-dns-server", "", "primary server of the zone, which takes the updates, such as ns1.example.com or 192.0.2.1:53")
	f.StringVar(&o.keyFile, "acme-dns-key-file", "", "file with the key (TSIG) that may change the zone, as tsig-keygen prints it or as algorithm:name:secret; read again at each update")
	f.StringVar(&o.name, "acme-dns-name", "", "name of the record to write, where _acme-challenge of the domain is a CNAME to it (default: _acme-challenge of the domain)")
	f.StringSliceVar(&o.resolvers, "acme-dns-resolvers", nil, "name servers that are asked for the zone and whether the record is there (default: the machine's and those of the zone)")
}

func (o *dnsOptions) enabled() bool { return o.by != "" }

// check says which flag is wrong.
func (o *dnsOptions) check() error {
	switch {
	case o.by == "" && (o.server != "" || o.keyFile != "" || o.name != "" || len(o.resolvers) > 0):
		return fault.New(fault.InvalidRequest, "--acme-dns-server, -key-file, -name and -resolvers are about --acme-dns %s; name that, too", dnsByUpdates)
	case o.by == "":
		return nil
	case o.by != dnsByUpdates:
		return fault.New(fault.InvalidRequest, "--acme-dns is %q; the one way there is is %s", o.by, dnsByUpdates)
	case o.server == "" || o.keyFile == "":
		return fault.New(fault.InvalidRequest, "--acme-dns %s needs --acme-dns-server and --acme-dns-key-file", dnsByUpdates)
	}
	if info, err := os.Stat(o.keyFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		return fault.New(fault.InvalidRequest, "anybody on this machine may read or change %s, which holds a secret; chmod 600 it", o.keyFile)
	}
	_, err := dnsupdate.ReadKey(o.keyFile)
	return err
}

// wildcard obtains the certificates for a domain and all names under it.
type wildcard struct {
	*issuing
	names  []string
	domain string
	zone   *certmagic.DNSManager
	log    *slog.Logger
}

// wildcardConfig speaks TLS with certificates for a domain and all names under it, which are
// obtained from the start on and renewed, until stop. Without them no client is served.
func (o *tlsOptions) wildcardConfig(ctx context.Context, dataDir, domain string, log *slog.Logger) (config *tls.Config, stop func()) {
	// The record's name: certmagic follows no CNAME.
	solver := &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
		DNSProvider: dnsupdate.New(o.dns.server, o.dns.keyFile), TTL: challengeTTL,
		Resolvers: o.dns.resolvers, OverrideDomain: strings.TrimSuffix(o.dns.name, "."), Logger: zap.NewNop(),
	}}
	w := &wildcard{
		issuing: o.newIssuing(dataDir, nil, certmagic.ACMEIssuer{DNS01Solver: solver}, log),
		names:   []string{domain, "*." + domain}, domain: domain, zone: &solver.DNSManager, log: log,
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.obtain(ctx)
	}()
	return w.config(protocolHTTP2, protocolHTTP1), func() {
		cancel()
		<-done
		w.cache.Stop()
	}
}

// obtain has the certificates managed: at once when they are there, and else as soon as the
// zone can be changed. An authority counts what fails with it; a wrong key must not be one.
func (w *wildcard) obtain(ctx context.Context) {
	var missing []string
	for _, name := range w.names {
		if !w.isStored(ctx, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		w.log.InfoContext(ctx, "certificates are being obtained; clients are served when they are there", "names", missing, "authority", w.issuer.CA)
		if !w.awaitZone(ctx) {
			return
		}
	}
	// It loads what is there before it returns, and tries again what fails.
	if err := w.magic.ManageAsync(ctx, w.names); err != nil && ctx.Err() == nil {
		w.log.ErrorContext(ctx, "the certificates cannot be used", "names", w.names, "error", err)
	}
}

// awaitZone returns when the zone can be changed, or false when ctx ends before.
func (w *wildcard) awaitZone(ctx context.Context) bool {
	for wait := zoneRetryFirst; ; wait = min(2*wait, zoneRetryMost) {
		err := w.tryZone(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		w.log.WarnContext(ctx, "waiting for the DNS: no certificate can be asked for yet", "error", err, "again_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// tryZone adds a record at the challenge's name and removes it.
func (w *wildcard) tryZone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, zoneTryTime)
	defer cancel()
	name := w.zone.OverrideDomain
	if name == "" {
		name = challengeLabel + w.domain
	}
	zone, err := certmagic.FindZoneByFQDN(ctx, w.zone.Logger, name, certmagic.RecursiveNameservers(w.zone.Resolvers))
	if err != nil {
		return fault.Wrap(err, fault.HostUnavailable, "the zone of %s was not found (%v); is the domain delegated, and are the resolvers right?", name, err)
	}
	trial := []libdns.Record{libdns.RR{
		Type: "TXT", Name: libdns.RelativeName(name+".", zone), Data: "trial-" + rand.Text(), TTL: challengeTTL,
	}}
	if _, err := w.zone.DNSProvider.AppendRecords(ctx, zone, trial); err != nil {
		return err
	}
	_, err = w.zone.DNSProvider.DeleteRecords(ctx, zone, trial)
	return err
}

// hostOf is a domain without the port that it may have.
func hostOf(domain string) string {
	if host, _, err := net.SplitHostPort(domain); err == nil {
		return host
	}
	return domain
}
