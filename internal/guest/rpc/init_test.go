package rpc

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
)

// Whatever is sent as an init is taken over or refused with words, and never stops the
// daemon from being told the right thing afterwards.
func FuzzInit(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `null`, `[]`, `{"accessToken":"secret"}`, `{"accessToken":1}`,
		`{"envVars":{"A":"b","":"c"}}`, `{"envVars":{"A=B":"c"}}`, `{"envVars":null}`,
		`{"timestamp":"2026-01-01T00:00:00Z"}`, `{"timestamp":"9999-12-31T23:59:59Z"}`, `{"timestamp":"yesterday"}`,
		`{"defaultUser":"root","defaultWorkdir":"/tmp"}`, `{"defaultUser":"ghost"}`, `{"defaultWorkdir":"../.."}`,
		`{"hostname":"box","nameservers":["10.0.0.1","x"]}`, `{"hostname":"` + strings.Repeat("h", 300) + `"}`,
		`{"sandboxID":"a\u0000b","templateID":"\ud800"}`, `{"volumeMounts":[{"path":"/x"}],"caBundle":"-"}`, `{"accessToken":`,
		`{"volumeMounts":[],"lifecycleID":"x","hyperloopIP":"10.0.0.7"}`, `{"hyperloopIP":"::1%lo"}`, `{"hyperloopIP":"10.0.0.7 x"}`,
		`{"caBundle":"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"}`,
		strings.Repeat(`{"a":`, 2000),
	} {
		f.Add(seed, "secret")
		f.Add(seed, "")
	}
	server, handler := New(Config{Logger: slog.New(slog.DiscardHandler), Users: identity.NewUsers("/etc/passwd", "/etc/group")})
	f.Cleanup(server.Close)
	ask := func(t *testing.T, body, token string) *httptest.ResponseRecorder {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/init", strings.NewReader(body))
		if token != "" {
			req.Header.Set(tokenHeader, token)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		return w
	}
	f.Fuzz(func(t *testing.T, body, token string) {
		w := ask(t, body, token)
		switch w.Code {
		case http.StatusNoContent:
			if w.Body.Len() > 0 || w.Header().Get("X-Envd-Version") != Version {
				t.Errorf("%q is answered %v %q", body, w.Header(), w.Body)
			}
		case http.StatusBadRequest, http.StatusUnauthorized:
			var answer struct {
				Code    int
				Message string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Code != w.Code || answer.Message == "" {
				t.Errorf("%q is answered %d %q: %v", body, w.Code, w.Body, err)
			}
		default:
			t.Errorf("%q is answered %d %q", body, w.Code, w.Body)
		}
		// Take the token away again, whatever it has become.
		if !server.identity.Authorized("") {
			var said initRequest
			_ = json.NewDecoder(strings.NewReader(body)).Decode(&said) // it has just been taken over
			if again := ask(t, `{}`, said.AccessToken); again.Code != http.StatusNoContent {
				t.Errorf("after %q: %d %q", body, again.Code, again.Body)
			}
		}
	})
}
