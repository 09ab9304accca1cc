package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// writeCertificate puts a new certificate for a name into two files.
func writeCertificate(t *testing.T, cert, key, name string, modified time.Time) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name, "*." + name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
}

func nameOf(t *testing.T, c *certificate) string {
	t.Helper()
	pair, err := c.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf.Subject.CommonName
}

func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeCertificate(t, cert, key, "old.example.com", time.Now().Add(-time.Hour))
	c := &certificate{cert: cert, key: key, log: slog.New(slog.DiscardHandler)}
	if err := c.load(); err != nil || nameOf(t, c) != "old.example.com" {
		t.Fatal(err)
	}
	writeCertificate(t, cert, key, "new.example.com", time.Now())
	if name := nameOf(t, c); name != "old.example.com" {
		t.Errorf("it was looked at again at once: %s", name)
	}
	c.looked = time.Time{}
	if name := nameOf(t, c); name != "new.example.com" {
		t.Errorf("the new one was not read: %s", name)
	}
	// A file that is half there does not end the service.
	if err := os.WriteFile(cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.looked = time.Time{}
	if name := nameOf(t, c); name != "new.example.com" {
		t.Errorf("the good one was given up: %s", name)
	}
}

func TestTLSFlags(t *testing.T) {
	for _, bad := range []tlsOptions{
		{cert: "x"}, {key: "x"}, {cert: "x", key: "x", acme: true}, {acmeNames: -1},
		{dns: dnsOptions{by: "cloud", server: "x", keyFile: "y"}}, {dns: dnsOptions{by: dnsByUpdates, server: "x"}}, {dns: dnsOptions{server: "x"}},
		{dns: dnsOptions{by: dnsByUpdates, server: "x", keyFile: "/nonexistent/key"}}, {cert: "x", key: "x", dns: dnsOptions{by: dnsByUpdates}},
	} {
		if err := bad.check(); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	open := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(open, []byte("hmac-sha256:acme:c2VjcmV0"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := tlsOptions{dns: dnsOptions{by: dnsByUpdates, server: "x", keyFile: open}}
	if err := o.check(); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := o.check(); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a key that everybody may read: %v", err)
	}
	missing := tlsOptions{cert: "/nonexistent/cert", key: "/nonexistent/key"}
	if _, err := missing.config(slog.New(slog.DiscardHandler)); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("files that are not there: %v", err)
	}
}

// noNames allows nothing, and counts how often it was asked.
type noNames struct{ asked int }

func (n *noNames) Allow(_ context.Context, name string, stored bool) error {
	if stored {
		return fault.New(fault.Internal, "nothing was ever stored")
	}
	n.asked++
	return fault.New(fault.NotFound, "%q is not a name of this server", name)
}

func TestNoCertificatesForOtherNames(t *testing.T) {
	names := &noNames{}
	// An authority that was asked would be missed: nothing listens there.
	o := &tlsOptions{acme: true, acmeCA: "https://127.0.0.1:1/directory"}
	config, stop := o.acmeConfig(t.TempDir(), 0, names, slog.New(slog.DiscardHandler))
	defer stop()
	hello := &tls.ClientHelloInfo{ServerName: "evil.example.com", CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256}, SupportedVersions: []uint16{tls.VersionTLS13}}
	if _, err := config.GetCertificate(hello); err == nil || names.asked == 0 {
		t.Errorf("%v, asked %d times", err, names.asked)
	}
	if _, err := config.GetCertificate(&tls.ClientHelloInfo{}); err == nil {
		t.Error("a client without a name got a certificate")
	}
}
