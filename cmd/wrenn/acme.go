package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"go.uber.org/zap"
)

// acmeNames says for which names certificates are obtained.
type acmeNames interface {
	// Allow returns an error for a name for which no certificate is to be there; stored is
	// whether there is one.
	Allow(ctx context.Context, name string, stored bool) error
}

// issuing obtains certificates by ACME, keeps them in the data directory and renews them.
type issuing struct {
	magic  *certmagic.Config
	issuer *certmagic.ACMEIssuer
	cache  *certmagic.Cache
}

// newIssuing returns what issues from the authority of the flags. challenge says how it is
// shown that a name is ours.
func (o *tlsOptions) newIssuing(dataDir string, onDemand *certmagic.OnDemandConfig, challenge certmagic.ACMEIssuer, log *slog.Logger) *issuing {
	i := &issuing{}
	i.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return i.magic, nil },
		Logger:           zap.NewNop(),
	})
	i.magic = certmagic.New(i.cache, certmagic.Config{
		Storage:  &certmagic.FileStorage{Path: filepath.Join(dataDir, "acme")},
		OnDemand: onDemand,
		Logger:   zap.NewNop(),
		OnEvent: func(ctx context.Context, event string, data map[string]any) error {
			switch event {
			case "cert_obtained":
				log.InfoContext(ctx, "a certificate was obtained", "name", data["identifier"])
			case "cert_failed":
				log.WarnContext(ctx, "no certificate was obtained", "name", data["identifier"], "error", data["error"])
			}
			return nil
		},
	})
	challenge.CA, challenge.Email, challenge.Agreed, challenge.Logger = o.acmeCA, o.acmeEmail, true, zap.NewNop()
	i.issuer = certmagic.NewACMEIssuer(i.magic, challenge)
	i.magic.Issuers = []certmagic.Issuer{i.issuer}
	return i
}

// isStored reports whether there is a certificate for a name.
func (i *issuing) isStored(ctx context.Context, name string) bool {
	return i.magic.Storage.Exists(ctx, certmagic.StorageKeys.SiteCert(i.issuer.IssuerKey(), name))
}

// config speaks TLS with the certificates that there are, and the protocols.
func (i *issuing) config(protocols ...string) *tls.Config {
	config := i.magic.TLSConfig()
	config.MinVersion = tls.VersionTLS12
	config.NextProtos = protocols
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "" {
			return nil, errNoName
		}
		return i.magic.GetCertificate(hello)
	}
	return config
}

// The protocols that are spoken over TLS.
const (
	protocolHTTP2 = "h2"
	protocolHTTP1 = "http/1.1"
)

// acmeConfig speaks TLS with certificates that are obtained by ACME when somebody first
// asks for a name, and renewed. The authority proves by the listener on port that the name
// is ours, and reaches it at port 443. Nobody gets a certificate for a name under which
// there is nothing: others would spend what the authority allows us.
func (o *tlsOptions) acmeConfig(dataDir string, port int, names acmeNames, log *slog.Logger) (config *tls.Config, stop func()) {
	var i *issuing
	i = o.newIssuing(dataDir, &certmagic.OnDemandConfig{DecisionFunc: func(ctx context.Context, name string) error {
		return names.Allow(ctx, name, i.isStored(ctx, name))
	}}, certmagic.ACMEIssuer{AltTLSALPNPort: port, DisableHTTPChallenge: true}, log)
	return i.config(protocolHTTP2, protocolHTTP1, acmez.ACMETLS1Protocol), i.cache.Stop
}

// errNoName is that a client has not said whom it wants.
var errNoName = errors.New("no name was asked for, and certificates are for names")
