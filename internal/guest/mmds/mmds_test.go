package mmds

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "token of one reading=="

// service answers as the real one does, with this body.
func service(t *testing.T, body string) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Metadata-Token-Ttl-Seconds") != "60" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte(token))
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Metadata-Token") != token || r.Header.Get("Accept") != "application/json" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(body))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

func TestRead(t *testing.T) {
	for body, want := range map[string]Metadata{
		`{"instanceID":"sb1","envID":"base","accessTokenHash":"0a","address":"http://x"}`: {"sb1", "base", "0a"},
		`{}`: {},
	} {
		got, err := New(service(t, body).URL + "/").Read(t.Context())
		if err != nil || got != want {
			t.Errorf("%s is read as %+v, %v", body, got, err)
		}
	}
}

func TestAnswersThatCannotBeUsed(t *testing.T) {
	for body, says := range map[string]string{
		"":                         "does not answer with JSON",
		"instanceID/":              "does not answer with JSON",
		`{"instanceID":7}`:         "does not answer with JSON",
		strings.Repeat(" ", 1<<17): "larger than",
	} {
		_, err := New(service(t, body).URL).Read(t.Context())
		if !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.20q: %v", body, err)
		}
	}
	// One that sends elsewhere is not followed: the token is for this service alone.
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	redirects := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer redirects.Close()
	if _, err := New(redirects.URL).Read(t.Context()); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("a redirect: %v", err)
	}
	if _, err := New("not a URL\x00").Read(t.Context()); err == nil {
		t.Error("an address that is none gives metadata")
	}
}

// A service that is not there, or says nothing, is given up.
func TestReadIsBounded(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := New("http://" + ln.Addr().String()).Read(t.Context()); err == nil || time.Since(began) > 3*patience {
		t.Errorf("a silent service: %v after %v", err, time.Since(began))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New("http://" + ln.Addr().String()).Read(ctx); err == nil {
		t.Error("metadata came though nobody waits for it")
	}
	ln.Close()
	if _, err := New("http://" + ln.Addr().String()).Read(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("no service: %v", err)
	}
}

// FuzzRead wants no answer to be more than an error.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{``, `{}`, `null`, `[]`, `{"instanceID":"a\u0000"}`, `{"instanceID":{}}`, "\xff", `{"accessTokenHash":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := New(service(t, string(body)).URL).Read(t.Context())
		if err != nil && (got != Metadata{} || !fault.Is(err, fault.Internal)) {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}
