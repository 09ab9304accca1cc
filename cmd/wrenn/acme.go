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

// acmeConfig speaks TLS with certificates that are obtained by ACME when somebody first
// asks for a name, and renewed. The authority proves by the listener on port that the name
// is ours, and reaches it at port 443. Nobody gets a certificate for a name under which
// there is nothing: others would spend what the authority allows us.
func (o *tlsOptions) acmeConfig(dataDir string, port int, names acmeNames, log *slog.Logger) (config *tls.Config, stop func()) {
	var magic *certmagic.Config
	var issuer *certmagic.ACMEIssuer
	storage := &certmagic.FileStorage{Path: filepath.Join(dataDir, "acme")}
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return magic, nil },
		Logger:           zap.NewNop(),
	})
	magic = certmagic.New(cache, certmagic.Config{
		Storage: storage,
		OnDemand: &certmagic.OnDemandConfig{DecisionFunc: func(ctx context.Context, name string) error {
			return names.Allow(ctx, name, storage.Exists(ctx, certmagic.StorageKeys.SiteCert(issuer.IssuerKey(), name)))
		}},
		Logger: zap.NewNop(),
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
	issuer = certmagic.NewACMEIssuer(magic, certmagic.ACMEIssuer{
		CA: o.acmeCA, Email: o.acmeEmail, Agreed: true, AltTLSALPNPort: port, DisableHTTPChallenge: true, Logger: zap.NewNop(),
	})
	magic.Issuers = []certmagic.Issuer{issuer}
	config = magic.TLSConfig()
	config.MinVersion = tls.VersionTLS12
	config.NextProtos = []string{"h2", "http/1.1", acmez.ACMETLS1Protocol}
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "" {
			return nil, errNoName
		}
		return magic.GetCertificate(hello)
	}
	return config, cache.Stop
}

// errNoName is that a client has not said whom it wants.
var errNoName = errors.New("no name was asked for, and certificates are for names")
