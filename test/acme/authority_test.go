package acme_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

// authority is a running Pebble.
type authority struct {
	dir string
	// certificate is the file of the certificate that it shows itself.
	certificate string
	// directory is where clients begin, and management where its roots are.
	directory, management string
	// serverAddress is where it looks for those who want a certificate.
	serverAddress string
	client        *http.Client
}

// startAuthority starts one that is stopped when the test ends, and that looks names up at an
// address.
func startAuthority(t *testing.T, names string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.certificate = filepath.Join(a.dir, "cert.pem")
	key := filepath.Join(a.dir, "key.pem")
	trust := writeOwnCertificate(t, a.certificate, key)
	a.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12}}}
	listen, manage := freeAddress(t), freeAddress(t)
	a.serverAddress = freeAddress(t)
	a.directory, a.management = "https://"+listen+"/dir", "https://"+manage
	_, port, err := net.SplitHostPort(a.serverAddress)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": manage, "certificate": a.certificate, "privateKey": key,
		"httpPort": 1, "tlsPort": n, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
	}})
	if err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(a.dir, "pebble.json")
	const private = 0o600
	if err := os.WriteFile(settings, config, private); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(a.dir, "pebble.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(t.Context(), testenv.Bin(t, filepath.Join("tools", "pebble")), "-config", settings, "-strict", "-dnsserver", names)
	// Otherwise it takes its time and refuses good requests now and then, to harden clients.
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it keeps nothing
		_ = cmd.Wait()
	})
	return a
}

// said is the authority's log.
func (a *authority) said(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(a.dir, "pebble.log"))
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// writeOwnCertificate makes a certificate for this machine that vouches for itself.
func writeOwnCertificate(t *testing.T, cert, key string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pebble"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	const mode = 0o600
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), mode); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return pool
}

// freeAddress is one on this machine at which nothing listens just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
