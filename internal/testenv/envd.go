package testenv

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// EnvdToken is the access token of the daemon that StartEnvd starts.
const EnvdToken = "a token of the tests"

// StartEnvd runs the real guest daemon on this host, with root as its default user and
// the variable SHAPE=round in its environment, until the test ends. It returns its address.
func StartEnvd(t testing.TB) *net.TCPAddr {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), Bin(t, "envd"), "--listen", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-drained
		_ = cmd.Wait() // it was killed
	})
	scanner := bufio.NewScanner(stderr)
	listens := regexp.MustCompile(`127\.0\.0\.1:\d+`)
	for scanner.Scan() {
		found := listens.FindString(scanner.Text())
		if found == "" {
			continue
		}
		go func() { defer close(drained); _, _ = io.Copy(io.Discard, stderr) }()
		address, err := net.ResolveTCPAddr("tcp", found)
		if err != nil {
			t.Fatal(err)
		}
		initEnvd(t, found)
		return address
	}
	close(drained)
	t.Fatalf("envd did not say where it listens: %v", scanner.Err())
	return nil
}

func initEnvd(t testing.TB, address string) {
	t.Helper()
	body := `{"accessToken":"` + EnvdToken + `","defaultUser":"root","envVars":{"SHAPE":"round"}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/init", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("init of envd: %s", resp.Status)
	}
	http.DefaultClient.CloseIdleConnections()
}
