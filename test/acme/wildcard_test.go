package acme_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/control/dnsupdate/zonetest"
)

// One certificate is for the domain, one for all names under it, shown to be ours by a record
// in the DNS. The server starts without, says what it waits for, and goes on as soon as it is
// set right; the authority hears of nothing before.
func TestWildcardIsObtained(t *testing.T) {
	zone := zonetest.Start(t, domain)
	key := filepath.Join(t.TempDir(), "key")
	other := base64.StdEncoding.EncodeToString([]byte("not the secret of the server"))
	setKey := func(secret string) {
		t.Helper()
		if err := os.WriteFile(key, []byte(zonetest.Key(secret)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setKey(other)
	s := startServer(t, startAuthority(t, zone.Address), "--acme-dns", "rfc2136",
		"--acme-dns-server", zone.Address, "--acme-dns-key-file", key, "--acme-dns-resolvers", zone.Address)
	s.eventually(t, startLimit, func() error {
		for _, want := range []string{"certificates are being obtained", "waiting for the DNS", "BADSIG", "the secret of its key"} {
			if !strings.Contains(s.said(t), want) {
				return fmt.Errorf("the log does not say %q", want)
			}
		}
		return nil
	})
	if _, err := s.handshake(t, domain); err == nil {
		t.Error("there is a certificate already")
	}
	if heard := s.authority.said(t); strings.Contains(heard, "-plz") {
		t.Errorf("the authority was asked for something:\n%s", heard)
	}

	setKey(zonetest.Secret)
	port := "8000-sb00000000000000000000." + domain
	s.eventually(t, startLimit, func() error {
		for _, name := range []string{domain, port} {
			conn, err := s.handshake(t, name)
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	})
	s.key(t)
	if got, err := s.get(t, domain, "/healthz"); err != nil {
		t.Errorf("the API answers %q, %v", got, err)
	}
	if got, err := s.get(t, port, "/"); err != nil || !strings.Contains(got, "The sandbox was not found") {
		t.Errorf("a port answers %q, %v", got, err)
	}
	if one, two := s.serial(t, port), s.serial(t, "3000-sb11111111111111111111."+domain); one != two {
		t.Errorf("two ports have two certificates: %s, %s", one, two)
	}
	if _, err := s.handshake(t, "a.b."+domain); err == nil {
		t.Error("a name that the wildcard does not cover has a certificate")
	}
	s.eventually(t, startLimit, func() error {
		if left, ever := zone.Texts("_acme-challenge." + domain + "."); len(left) > 0 || ever < 2 {
			return fmt.Errorf("of %d records %q are left", ever, left)
		}
		return nil
	})
	log := s.said(t)
	if obtained := strings.Count(log, "a certificate was obtained"); obtained != 2 {
		t.Errorf("%d certificates were obtained:\n%s", obtained, log)
	}
	if slices.ContainsFunc([]string{other, zonetest.Secret}, func(secret string) bool { return strings.Contains(log, secret) }) {
		t.Errorf("a secret is in the log:\n%s", log)
	}

	// Another start serves what is there, whatever has become of the DNS.
	zone.Refuse(true)
	first := s.serial(t, port)
	s.stop(t)
	s.run(t)
	s.eventually(t, startLimit, func() error {
		conn, err := s.handshake(t, port)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if again := s.serial(t, port); again != first {
		t.Errorf("another certificate is served: %s, not %s", again, first)
	}
	if waits := strings.Count(s.said(t), "certificates are being obtained"); waits != 1 {
		t.Errorf("it waited for certificates %d times:\n%s", waits, s.said(t))
	}
}
