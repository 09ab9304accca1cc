package guest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// asks is a program that serves HTTPS on a free port, with the certificate in $CERT, and
// says who believes it: Python, which looks authorities up by their hash, and curl, which
// reads the bundle.
const asks = `
import http.server, os, ssl, subprocess, tempfile, threading, urllib.request
with tempfile.NamedTemporaryFile("w") as f:
    f.write(os.environ["CERT"])
    f.flush()
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(f.name)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
server.socket = own.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = "https://localhost:%d/" % server.server_port
try:
    print("python", urllib.request.urlopen(url, timeout=20).status)
except urllib.error.URLError as e:
    print("python", "CERTIFICATE_VERIFY_FAILED" in str(e))
print("curl", subprocess.run(["curl", "-s", "-o", "/dev/null", url]).returncode)
`

// untrusted is how curl ends when it does not know who signed a certificate.
const untrusted = "60"

// tellOfAuthority shows that programs of the sandbox trust whom it is told to trust.
func tellOfAuthority(t *testing.T, client processconnect.ProcessClient, address string) {
	authority, server := authorityAndServer(t)
	ask := func(want string) {
		t.Helper()
		out, status := run(t, client, &process.ProcessConfig{
			Cmd: "python3", Args: []string{"-c", asks}, Envs: map[string]string{"CERT": server},
		})
		var said []string // without the server's log
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "python ") || strings.HasPrefix(line, "curl ") {
				said = append(said, strings.TrimSpace(line))
			}
		}
		if got := strings.Join(said, ", "); got != want || status != "exit status 0" {
			t.Errorf("%s, %q, want %q:\n%s", status, got, want, out)
		}
	}
	ask("python True, curl " + untrusted)
	for range 2 {
		body, err := json.Marshal(map[string]string{"caBundle": authority})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/init", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusNoContent {
			t.Fatalf("the init is answered %s", resp.Status)
		}
	}
	ask("python 200, curl 0")
}

// authorityAndServer returns, in PEM, a certificate of an authority, and a key with a
// certificate for localhost that the authority signed.
func authorityAndServer(t *testing.T) (authority, server string) {
	t.Helper()
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	parent := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Proxy of  a Test"}, CommonName: "CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	parentKey := newKey()
	root, err := x509.CreateCertificate(rand.Reader, parent, parent, parentKey.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	if parent, err = x509.ParseCertificate(root); err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: parent.NotBefore, NotAfter: parent.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafKey := newKey()
	signed, err := x509.CreateCertificate(rand.Reader, leaf, parent, leafKey.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	return encode("CERTIFICATE", root), encode("PRIVATE KEY", secret) + encode("CERTIFICATE", signed)
}
