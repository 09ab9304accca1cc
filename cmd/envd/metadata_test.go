package main

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// TestMetadataIsAskedForOnlyWhenWanted reads from a service as microVMs have it.
func TestMetadataIsAskedForOnlyWhenWanted(t *testing.T) {
	var asked atomic.Int32
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		answer := `{"instanceID":"sb7"}`
		if r.Method == http.MethodPut {
			answer = "token"
		}
		_, _ = w.Write([]byte(answer))
	}))
	defer service.Close()
	for _, with := range []bool{true, false} {
		args := []string{"/proc/self/exe", "--listen", "127.0.0.1:0"}
		want := "none\n"
		if with {
			args, want = append(args, "--metadata", service.URL), "sb7\n"
		}
		url := serving(t, daemon(t, args...))
		initialize(t, url, `{}`)
		if got := shell(t, url, "echo ${E2B_SANDBOX_ID-none}"); got != want {
			t.Errorf("asked: %v: the sandbox is %q, want %q", with, got, want)
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the service was asked %d times", n)
	}
}
