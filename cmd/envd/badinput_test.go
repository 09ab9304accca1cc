package main

import (
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestGiganticHeadersAreRefused(t *testing.T) {
	url := serving(t, daemon(t, os.Args[0], "--listen", "127.0.0.1:0"))
	for name, value := range map[string]string{
		"X-Metadata-Note":                       strings.Repeat("v", 4*maxHeader),
		"X-" + strings.Repeat("n", 4*maxHeader): "v",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/files?path=/etc/hostname", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(name, value)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%.20s…: %s", name, resp.Status)
		}
	}
	if got := shell(t, url, "echo fine"); got != "fine\n" {
		t.Errorf("afterwards a command says %q", got)
	}
}
