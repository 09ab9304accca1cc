package system_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"testing"
)

// daemonPort is the guest daemon's, which SDKs ask for files.
const daemonPort = 49983

// daemonToken is what the guest daemon wants, which the host alone knows.
func (s *sandbox) daemonToken(t *testing.T) string {
	t.Helper()
	for _, file := range globs(s.p.dataDir + "/*/" + s.id + ".json") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if found := regexp.MustCompile(`"token": *"([^"]+)"`).FindSubmatch(text); found != nil {
			return string(found[1])
		}
	}
	t.Fatal("the host has no record of the sandbox with its token")
	return ""
}

// signed is the path and query of a signed address of a file, as SDKs make it.
func signed(path, token string) string {
	sum := sha256.Sum256([]byte(path + ":read::" + token))
	return "/files?" + url.Values{"path": {path}, "signature": {"v1_" + base64.RawStdEncoding.EncodeToString(sum[:])}}.Encode()
}

// A signed address of a file of a paused sandbox wakes it and is served, if the sandbox asked
// for that; of a private one, only with its traffic token.
func TestSignedAddressesWakeSandboxes(t *testing.T) {
	t.Parallel()
	p := theProgram(t)
	for _, private := range []bool{false, true} {
		s := newSandbox(t, p, object{"auto_resume": true, "allow_public_traffic": !private})
		a := p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "sh", "args": []string{"-c", "printf kept > hello.txt"}})
		if a.status != http.StatusOK {
			t.Fatalf("writing a file answered %d: %s", a.status, a.body)
		}
		if a := p.call(t, http.MethodPost, s.path("/pause"), nil); a.status != http.StatusOK {
			t.Fatalf("pause answered %d: %s", a.status, a.body)
		}
		address, headers := signed("hello.txt", s.daemonToken(t)), []string{}
		if private {
			if resp := s.visitPort(t, daemonPort, address); resp.StatusCode != http.StatusBadGateway {
				t.Errorf("without the traffic token: %d", resp.StatusCode)
			}
			if status, _ := s.status(t); status != "paused" {
				t.Errorf("a stranger woke the private one: it is %s", status)
			}
			token, _ := s.info["traffic_token"].(string)
			headers = []string{"E2b-Traffic-Access-Token", token}
		}
		resp := s.visitPort(t, daemonPort, address, headers...)
		if got := text(t, resp); resp.StatusCode != http.StatusOK || got != "kept" {
			t.Errorf("private %v: %d %q", private, resp.StatusCode, got)
		}
		if status, _ := s.status(t); status != "running" {
			t.Errorf("private %v: it is %s afterwards", private, status)
		}
		if resp := s.visitPort(t, daemonPort, address+"x", headers...); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("private %v: another signature: %d", private, resp.StatusCode)
		}
		if resp := s.visitPort(t, daemonPort, "/init", headers...); resp.StatusCode != http.StatusNotFound {
			t.Errorf("private %v: what is the host's alone: %d", private, resp.StatusCode)
		}
	}
}
