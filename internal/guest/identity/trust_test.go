package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// newAuthority returns a certificate with this subject, in DER and in PEM.
func newAuthority(t testing.TB, subject pkix.Name) ([]byte, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: subject, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// trustTest is an Identity that writes to a trust store of its own, which has one root.
type trustTest struct {
	*Identity
	store TrustStore
	root  string
}

func newTrustTest(t *testing.T) trustTest {
	t.Helper()
	users, dir := testUsers(t)
	_, root := newAuthority(t, pkix.Name{CommonName: "root"})
	tt := trustTest{root: root, store: TrustStore{
		Bundles: []string{dir + "/ssl/bundle.crt", dir + "/other/bundle.crt"}, Hashed: dir + "/ssl", Local: dir + "/local/certs",
	}}
	if err := os.MkdirAll(dir+"/ssl", 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, dir+"/ssl/bundle.crt", strings.TrimSuffix(root, "\n"))
	tt.Identity = New(users, System{Trust: tt.store}, slog.New(slog.DiscardHandler))
	return tt
}

func (tt trustTest) install(t *testing.T, bundle string) {
	t.Helper()
	if err := tt.Apply(Update{CABundle: bundle}, ""); err != nil {
		t.Fatal(err)
	}
}

// want says what the bundle has, and that what is beside it is what belongs to it.
func (tt trustTest) want(t *testing.T, what string, added ...string) {
	t.Helper()
	if got, want := content(t, tt.store.Bundles[0]), tt.root+strings.Join(added, ""); got != want && got+"\n" != want {
		t.Errorf("%s: the bundle is\n%s, want\n%s", what, got, want)
	}
	files, links := 0, 0
	for _, pattern := range []string{tt.store.Local + "/*", tt.store.Hashed + "/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			switch filepath.Ext(path) {
			case ".crt":
				files++
			case ".0", ".1":
				links++
				if at := content(t, path); !strings.Contains(strings.Join(added, ""), at) {
					t.Errorf("%s: %s is\n%s", what, path, at)
				}
			case ".pem":
			default:
				t.Errorf("%s: %s is left", what, path)
			}
		}
	}
	if files != 1+len(added) || links != len(added) {
		t.Errorf("%s: %d files and %d links for %d certificates", what, files, links, len(added))
	}
}

func TestCABundleIsInstalled(t *testing.T) {
	tt := newTrustTest(t)
	_, one := newAuthority(t, pkix.Name{CommonName: "one"})
	_, two := newAuthority(t, pkix.Name{CommonName: "two"})
	_, twin := newAuthority(t, pkix.Name{CommonName: "two"}) // the hash is the same
	tt.install(t, "a comment\n"+one)
	tt.want(t, "the first", one)
	before, err := os.Stat(tt.store.Bundles[0])
	if err != nil {
		t.Fatal(err)
	}
	tt.install(t, one)
	tt.install(t, "")
	tt.want(t, "again, and nothing", one)
	if after, err := os.Stat(tt.store.Bundles[0]); err != nil || !os.SameFile(before, after) {
		t.Errorf("what is there was written again, %v", err)
	}
	tt.install(t, two+one+twin+one)
	tt.want(t, "more", one, two, twin)
	tt.install(t, two)
	tt.want(t, "fewer", two)
	tt.install(t, tt.root)
	tt.want(t, "what the system trusts anyway")
	tt.install(t, two)
	if err := os.Remove(tt.store.Bundles[0]); err != nil { // as if a call had broken off
		t.Fatal(err)
	}
	put(t, tt.store.Bundles[0], tt.root)
	tt.install(t, two)
	tt.want(t, "what broke off", two)
}

// A restarted daemon and another image's places of things: the bundle is a link elsewhere.
func TestCABundleBehindALink(t *testing.T) {
	tt := newTrustTest(t)
	real := tt.store.Bundles[1]
	if err := errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.Rename(tt.store.Bundles[0], real), os.Symlink(real, tt.store.Bundles[0])); err != nil {
		t.Fatal(err)
	}
	_, one := newAuthority(t, pkix.Name{CommonName: "one"})
	tt.install(t, one)
	if got := content(t, real); got != tt.root+one {
		t.Errorf("the bundle is\n%s", got)
	}
	if target, err := os.Readlink(tt.store.Bundles[0]); err != nil || target != real {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if err := os.Remove(tt.store.Bundles[0]); err != nil {
		t.Fatal(err)
	}
	_, two := newAuthority(t, pkix.Name{CommonName: "two"})
	tt.install(t, two) // the second path is the system's now
	if got := content(t, real); got != tt.root+two {
		t.Errorf("the bundle is\n%s", got)
	}
}

func TestWrongCABundlesChangeNothing(t *testing.T) {
	tt := newTrustTest(t)
	_, good := newAuthority(t, pkix.Name{CommonName: "good"})
	for says, bundle := range map[string]string{
		"has no certificate":               "nothing",
		"block of type 'EC PRIVATE KEY'":   good + string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}})),
		"number 2, that cannot be read":    good + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})),
		"has 2 blocks, of which 1 can":     good + good[:len(good)/2],
		"has 1 blocks, of which 0 can be ": strings.ReplaceAll(good, "\n", " "),
	} {
		err := tt.Apply(Update{CABundle: bundle, Token: "secret"}, "")
		if !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	tt.want(t, "after them")
	if tt.TokenRequired() {
		t.Error("a refused update set the token")
	}
}

// Who sends certificates hears that they are not there.
func TestCABundleThatCannotBeInstalled(t *testing.T) {
	tt := newTrustTest(t)
	put(t, filepath.Dir(tt.store.Local), "in the way")
	_, one := newAuthority(t, pkix.Name{CommonName: "one"})
	err := tt.Apply(Update{CABundle: one, Token: "secret"}, "")
	if !fault.Is(err, fault.Internal) || !strings.Contains(fault.MessageOf(err), "could not be installed") {
		t.Errorf("%v", err)
	}
	if !tt.TokenRequired() {
		t.Error("the sandbox was left open")
	}
}

// The hashes are what `openssl x509 -subject_hash` says of these subjects.
func TestSubjectHash(t *testing.T) {
	text := func(tag int, value string) asn1.RawValue { return asn1.RawValue{Tag: tag, Bytes: []byte(value)} }
	commonName := asn1.ObjectIdentifier{2, 5, 4, 3}
	for want, subject := range map[string]pkix.Name{
		"1adcc9b3": {CommonName: "one"},
		"0f957b38": {Country: []string{"DE"}, Organization: []string{"  Ä \t Company  LTD "}, OrganizationalUnit: []string{"b", "a"}, CommonName: "Root CA 1"},
		"7e87976b": {ExtraNames: []pkix.AttributeTypeAndValue{{Type: commonName, Value: text(asn1.TagT61String, "Caf\xe9 ROOT")}}},
		"ffd17e50": {ExtraNames: []pkix.AttributeTypeAndValue{{Type: commonName, Value: text(asn1.TagBMPString, "\x00A\x01\x04\x00 \x00 \x00B")}}},
		"eea339da": {},
	} {
		der, _ := newAuthority(t, subject)
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := subjectHash(cert.RawSubject); err != nil || got != want {
			t.Errorf("%v: %s, %v; want %s", cert.Subject, got, err, want)
		}
	}
}

// The roots of this machine, if it has any, are under the names that OpenSSL gave them.
func TestSubjectHashesOfThisMachine(t *testing.T) {
	links, err := filepath.Glob("/etc/ssl/certs/????????.0")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		block, _ := pem.Decode([]byte(content(t, link)))
		if block == nil {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue // Go takes fewer than OpenSSL
		}
		if got, err := subjectHash(cert.RawSubject); err != nil || got+".0" != filepath.Base(link) {
			t.Errorf("%s is %s, %v", link, got, err)
		}
	}
}

func FuzzSubjectHash(f *testing.F) {
	der, bundle := newAuthority(f, pkix.Name{Country: []string{"DE"}, CommonName: "Root CA 1"})
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cert.RawSubject, bundle)
	f.Add([]byte{0x30, 0x00}, "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
	f.Add([]byte{0x30, 0x80}, bundle[:len(bundle)-3])
	f.Fuzz(func(t *testing.T, subject []byte, bundle string) {
		if hash, err := subjectHash(subject); err == nil && len(hash) != 8 {
			t.Fatalf("the hash of %x is %q", subject, hash)
		}
		all, err := parseAuthorities(bundle)
		if err != nil && !fault.Is(err, fault.InvalidRequest) {
			t.Fatal(err)
		}
		for _, ca := range all {
			if again, err := parseAuthorities(string(ca.block)); err != nil || len(again) != 1 || !bytes.Equal(again[0].block, ca.block) {
				t.Fatalf("%s is not what was read: %v", ca.block, err)
			}
		}
	})
}
