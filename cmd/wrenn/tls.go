package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/spf13/pflag"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// tlsOptions is how clients reach the listeners. The zero value is without TLS.
type tlsOptions struct {
	cert, key string // files in PEM
	// acme is whether certificates are obtained when they are needed, from acmeCA.
	acme              bool
	acmeEmail, acmeCA string
	// acmeNames is for how many new ports a week certificates are obtained; 0: for all.
	acmeNames int
	// dns is how they are obtained for all names at once.
	dns dnsOptions
}

// defaultACMENames leaves something of Let's Encrypt's 50 names a week for the domain's other
// uses.
const defaultACMENames = 40

// addFlags adds the flags that are about TLS.
func (o *tlsOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.cert, "tls-cert", "", "certificate chain (PEM) for the API and the ports of sandboxes; read again when it changes")
	f.StringVar(&o.key, "tls-key", "", "private key (PEM) of --tls-cert")
	f.BoolVar(&o.acme, "acme", false, "obtain a certificate for each name under --domain that is asked for; the listener must be reached at port 443")
	f.StringVar(&o.acmeEmail, "acme-email", "", "address at which the certificate authority may write to you")
	f.IntVar(&o.acmeNames, "acme-names", defaultACMENames, "for how many new ports of sandboxes a week certificates are obtained; 0: for all")
	f.StringVar(&o.acmeCA, "acme-ca", certmagic.LetsEncryptProductionCA, "directory of the certificate authority")
	o.dns.addFlags(f)
}

// check says which flag is wrong.
func (o *tlsOptions) check() error {
	if (o.cert == "") != (o.key == "") {
		return fault.New(fault.InvalidRequest, "--tls-cert and --tls-key go together; name both or neither")
	}
	if o.byACME() && o.cert != "" {
		return fault.New(fault.InvalidRequest, "--acme and --tls-cert exclude each other; name one of them")
	}
	if o.acmeNames < 0 {
		return fault.New(fault.InvalidRequest, "--acme-names is %d; it must be 0 or more", o.acmeNames)
	}
	return o.dns.check()
}

func (o *tlsOptions) enabled() bool { return o.cert != "" || o.byACME() }

// byACME reports whether certificates are obtained, for each name or for all at once.
func (o *tlsOptions) byACME() bool { return o.acme || o.dns.enabled() }

func (o *tlsOptions) scheme() string {
	if o.enabled() {
		return schemeSecure
	}
	return schemePlain
}

// defaultPort is the port that addresses need not name.
func (o *tlsOptions) defaultPort() string {
	if o.enabled() {
		return "443"
	}
	return "80"
}

// config is how the listeners speak TLS with the certificate in files.
func (o *tlsOptions) config(log *slog.Logger) (*tls.Config, error) {
	c := &certificate{cert: o.cert, key: o.key, log: log}
	if err := c.load(); err != nil {
		return nil, fault.Wrap(err, fault.InvalidRequest, "cannot read the certificate in --tls-cert and --tls-key: %v", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

// certificateAge is how often it is looked whether the files have changed.
const certificateAge = 10 * time.Second

// certificate is a certificate in files, which are replaced now and then while we run. It is
// safe for concurrent use.
type certificate struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	// seen is the files' times, and looked when they were asked for.
	seen   [2]time.Time
	looked time.Time
}

// get is for tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) > certificateAge {
		if err := c.loadLocked(); err != nil {
			// Most likely one file is replaced already and the other not yet.
			c.log.Warn("the new certificate cannot be used; the old one stays", "error", err)
		}
	}
	return c.current, nil
}

func (c *certificate) load() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loadLocked()
}

// loadLocked reads the files when they have changed. The caller holds c.mu.
func (c *certificate) loadLocked() error {
	c.looked = time.Now()
	var times [2]time.Time
	for i, file := range []string{c.cert, c.key} {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		times[i] = info.ModTime()
	}
	if c.current != nil && times == c.seen {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", c.cert, c.key, err)
	}
	c.current, c.seen = &pair, times
	return nil
}
