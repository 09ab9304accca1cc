package dnsupdate_test

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"

	"github.com/wrenn-sandbox/wrenn/internal/control/dnsupdate"
	"github.com/wrenn-sandbox/wrenn/internal/control/dnsupdate/zonetest"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	zoneName = "sandboxes.test."
	name     = "_acme-challenge." + zoneName
)

// record is a text at the name.
func record(text string) []libdns.Record {
	return []libdns.Record{libdns.RR{Type: "TXT", Name: "_acme-challenge", Data: text, TTL: time.Minute}}
}

// writeKey puts a key into a file.
func writeKey(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Records of one name are added beside one another, and each goes alone.
func TestRecordsComeAndGo(t *testing.T) {
	zone := zonetest.Start(t, zoneName)
	s := dnsupdate.New(zone.Address, writeKey(t, zonetest.Key(zonetest.Secret)))
	expect := func(want ...string) {
		t.Helper()
		if now, _ := zone.Texts(name); !slices.Equal(now, want) {
			t.Errorf("there is %q, want %q", now, want)
		}
	}
	for _, text := range []string{"one", "two"} {
		added, err := s.AppendRecords(t.Context(), zoneName, record(text))
		if err != nil || len(added) != 1 || added[0].RR().Data != text {
			t.Fatal(added, err)
		}
	}
	expect("one", "two")
	if _, err := s.DeleteRecords(t.Context(), strings.TrimSuffix(zoneName, "."), record("one")); err != nil {
		t.Fatal(err)
	}
	expect("two")
	if _, err := s.AppendRecords(t.Context(), zoneName, []libdns.Record{libdns.RR{Type: "A", Name: "www", Data: "192.0.2.1"}}); err == nil {
		t.Error("an address was changed")
	}
}

// Whoever reads the error of a refusal knows what to do.
func TestRefusalsSayWhatToDo(t *testing.T) {
	zone := zonetest.Start(t, zoneName)
	other := base64.StdEncoding.EncodeToString([]byte("another secret"))
	wrong, unknown := zonetest.Key(other), strings.Replace(zonetest.Key(zonetest.Secret), "wrenn-test", "nobody", 1)
	for _, c := range []struct{ key, zone, want string }{
		{wrong, zoneName, "BADSIG): the secret of its key"},
		{unknown, zoneName, "BADKEY): it knows no key of the name \"nobody.\""},
		{zonetest.Key(zonetest.Secret), "elsewhere.test.", "NOTZONE): name the primary server"},
	} {
		_, err := dnsupdate.New(zone.Address, writeKey(t, c.key)).AppendRecords(t.Context(), c.zone, record("x"))
		if !fault.Is(err, fault.HostUnavailable) || !strings.Contains(fault.MessageOf(err), c.want) || strings.Contains(err.Error(), other) {
			t.Errorf("want %q, not %v", c.want, err)
		}
	}
	zone.Refuse(true)
	s := dnsupdate.New(zone.Address, writeKey(t, zonetest.Key(zonetest.Secret)))
	if _, err := s.AppendRecords(t.Context(), zoneName, record("x")); !strings.Contains(fault.MessageOf(err), "REFUSED): allow the key") {
		t.Errorf("a key that may not: %v", err)
	}
	if _, ever := zone.Texts(name); ever != 0 {
		t.Errorf("%d records came into the zone", ever)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	s = dnsupdate.New(l.Addr().String(), writeKey(t, zonetest.Key(zonetest.Secret)))
	if _, err := s.AppendRecords(t.Context(), zoneName, record("x")); !strings.Contains(fault.MessageOf(err), "does not answer an update") {
		t.Errorf("nobody there: %v", err)
	}
}

// An answer that anybody could have given is no consent.
func TestConsentIsSigned(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started, served := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{
		Listener: l, NotifyStartedFunc: func() { close(started) },
		MsgAcceptFunc: func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetReply(question))
		}),
	}
	go func() { served <- server.ActivateAndServe() }()
	<-started
	s := dnsupdate.New(l.Addr().String(), writeKey(t, zonetest.Key(zonetest.Secret)))
	if _, err := s.AppendRecords(t.Context(), zoneName, record("x")); !strings.Contains(fault.MessageOf(err), "is not signed") {
		t.Errorf("an answer without a signature: %v", err)
	}
	if err := server.Shutdown(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestKeys(t *testing.T) {
	const secret = "c2VjcmV0Ly9zZWNyZXQ="
	for _, good := range []string{
		"hmac-sha256:acme:" + secret + "\n",
		"key \"acme\" {\n\talgorithm hmac-sha256;\n\tsecret \"" + secret + "\";\n};\n",
		"// the key \"old\" is gone\nkey acme. { /* a\ncomment */ secret \"" + secret + "\"; # secret \"x\";\n algorithm HMAC-SHA256; };",
	} {
		key, err := dnsupdate.ReadKey(writeKey(t, good))
		if err != nil || key.Name != "acme." || key.Algorithm != dns.HmacSHA256 {
			t.Errorf("%q: %v, %v", good, key, err)
		}
		if shown := fmt.Sprintf("%v %+v %#v %s", key, key, key, key); strings.Contains(shown, secret) {
			t.Errorf("the secret is shown: %s", shown)
		}
	}
	for _, bad := range []string{
		"", "hmac-sha256:acme", "hmac-md5:acme:" + secret, "hmac-sha256::" + secret, "hmac-sha256:acme:geheim!",
		"key \"acme\" { algorithm hmac-sha256; };", "key \"acme\" { secret \"" + secret + "\"; };", secret, "zone \"x\" { type primary; };",
		"hmac-sha256:a..b:" + secret,
	} {
		if _, err := dnsupdate.ReadKey(writeKey(t, bad)); !fault.Is(err, fault.InvalidRequest) || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := dnsupdate.ReadKey("/nonexistent/key"); !fault.Is(err, fault.InvalidRequest) {
		t.Error(err)
	}
}
