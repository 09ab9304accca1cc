// Package acme lets a real certificate authority, Pebble, which Let's Encrypt tests clients
// with, issue certificates to a running server, over the challenge that a public one would
// use. It must know nothing of the server but its flags, its API and its log.
package acme_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/dnsupdate/zonetest"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

const (
	// domain is one that nobody can own (RFC 2606).
	domain = "sandboxes.test"

	startLimit = 60 * time.Second
	stopLimit  = 60 * time.Second
	// issueLimit bounds a handshake for which a certificate is obtained.
	issueLimit = 30 * time.Second
	pollEvery  = 50 * time.Millisecond
)

// Certificates are obtained for the domain and for ports of sandboxes that there are, when
// somebody first asks, and for nothing else.
func TestCertificatesAreObtained(t *testing.T) {
	s := startServer(t, startAuthority(t, zonetest.Start(t, domain).Address), "--acme")
	var ready string
	s.eventually(t, startLimit, func() (err error) {
		ready, err = s.get(t, domain, "/readyz")
		return err
	})
	s.key(t)
	var sandbox struct {
		ID string `json:"id"`
	}
	s.do(t, http.MethodPost, "/v1/sandboxes", "{}", &sandbox)
	defer s.do(t, http.MethodDelete, "/v1/sandboxes/"+sandbox.ID, "", nil)

	name := "8000-" + sandbox.ID + "." + domain
	if got, err := s.get(t, name, "/"); err != nil || !strings.Contains(got, "port is not open") {
		t.Errorf("the port of a sandbox answers %q, %v; ready was %q", got, err, ready)
	}
	first := s.serial(t, name)
	if again := s.serial(t, name); again != first {
		t.Errorf("the certificate was obtained a second time: %s, %s", first, again)
	}
	for _, other := range []string{"8000-" + sandbox.ID + "-x." + domain, "8000-sb00000000000000000000." + domain, "other." + domain, "example.com"} {
		if _, err := s.handshake(t, other); err == nil {
			t.Errorf("%s has a certificate", other)
		}
	}
	if log := s.said(t); strings.Count(log, "a certificate was obtained") != 2 {
		t.Errorf("not two certificates were obtained:\n%s", log)
	}
}

// server is a running `wrenn up`.
type server struct {
	authority *authority
	dir       string
	address   string
	apiKey    string
	flags     []string
	cmd       *exec.Cmd
	// exited is closed when the program has ended, with ended.
	exited chan struct{}
	ended  error
	client *http.Client
}

// startServer starts one, with flags, that is stopped when the test ends.
func startServer(t *testing.T, a *authority, flags ...string) *server {
	t.Helper()
	s := &server{authority: a, dir: t.TempDir(), address: a.serverAddress, flags: flags}
	s.run(t)
	t.Cleanup(func() { s.stop(t) })
	s.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(_ context.Context, _, address string) (net.Conn, error) {
			name, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return s.handshake(t, name)
		},
	}}
	return s
}

// run starts the program.
func (s *server) run(t *testing.T) {
	t.Helper()
	const mode = 0o600
	log, err := os.OpenFile(filepath.Join(s.dir, "up.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, mode)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(testenv.Bin(t, "wrenn"), append([]string{"up", "--data-dir", filepath.Join(s.dir, "data"), "--image-dir", testenv.Images(t),
		"--listen", s.address, "--proxy-listen", "none", "--on-stop", "kill", "--domain", domain, "--acme-ca", s.authority.directory}, s.flags...)...)
	s.cmd.Env = append(os.Environ(), "HOME="+s.dir, "XDG_CONFIG_HOME=", "SSL_CERT_FILE="+s.authority.certificate)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() {
		s.ended = cmd.Wait()
		close(exited)
	}()
}

// stop ends the program, if it runs.
func (s *server) stop(t *testing.T) {
	t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.exited:
		if s.ended != nil {
			t.Errorf("wrenn up ended with %v:\n%s", s.ended, s.said(t))
		}
	case <-time.After(stopLimit):
		_ = s.cmd.Process.Kill()
		t.Error("wrenn up did not stop in time")
	}
}

// handshake connects to a name of the server, whose certificate must be the authority's.
func (s *server) handshake(t *testing.T, name string) (*tls.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), issueLimit)
	defer cancel()
	roots, err := s.authority.roots(ctx)
	if err != nil {
		return nil, err
	}
	dialer := &tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: roots, MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, err
	}
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return nil, errors.New("the connection is not one of TLS")
	}
	return secured, nil
}

// serial tells one certificate from another.
func (s *server) serial(t *testing.T, name string) string {
	t.Helper()
	conn, err := s.handshake(t, name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// get asks a name of the server for a page.
func (s *server) get(t *testing.T, name, path string) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+name+path, http.NoBody)
	if err != nil {
		return "", err
	}
	answer, err := s.client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	return string(all), err
}

// key reads the server's API key.
func (s *server) key(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "data", "credentials.json"))
	if err != nil {
		t.Fatal(err)
	}
	var credentials struct {
		Key string `json:"api_key"`
		URL string `json:"api_url"`
	}
	if err := json.Unmarshal(text, &credentials); err != nil || !strings.HasPrefix(credentials.URL, "https://"+domain+":") {
		t.Fatalf("%v: %+v", err, credentials)
	}
	s.apiKey = credentials.Key
}

// do makes a request of the API that must succeed.
func (s *server) do(t *testing.T, method, path, body string, result any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "https://"+domain+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-API-Key", s.apiKey)
	request.Header.Set("Content-Type", "application/json")
	answer, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode >= http.StatusBadRequest {
		t.Fatalf("%s %s: %d %s %v", method, path, answer.StatusCode, all, err)
	}
	if result != nil {
		if err := json.Unmarshal(all, result); err != nil {
			t.Fatal(err)
		}
	}
}

// said is the server's log.
func (s *server) said(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "up.log"))
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// eventually waits until what holds, as long as the server runs.
func (s *server) eventually(t *testing.T, limit time.Duration, holds func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-s.exited:
			t.Fatalf("%v; wrenn up has ended:\n%s", err, s.said(t))
		case <-deadline:
			t.Fatalf("not within %v: %v\n%s\n%s", limit, err, s.said(t), s.authority.said(t))
		case <-tick.C:
		}
	}
}

// roots are what the authority's certificates are verified by. It makes them anew at each
// start.
func (a *authority) roots(ctx context.Context) (*x509.CertPool, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.management+"/roots/0", http.NoBody)
	if err != nil {
		return nil, err
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("the authority shows no root: %s", text)
	}
	return pool, nil
}
