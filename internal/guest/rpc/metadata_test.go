package rpc

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/internal/guest/mmds"
)

func hashOf(token string) string {
	sum := sha512.Sum512([]byte(token))
	return hex.EncodeToString(sum[:])
}

// TestInitReadsMetadataAgain wakes a sandbox as others than it was.
func TestInitReadsMetadataAgain(t *testing.T) {
	var said mmds.Metadata
	var failure error
	asked := 0
	server, handler := New(Config{
		Logger: slog.New(slog.DiscardHandler), Users: identity.NewUsers("/etc/passwd", "/etc/group"),
		Metadata: func(context.Context) (mmds.Metadata, error) { asked++; return said, failure },
	})
	t.Cleanup(server.Close)
	ask := func(method, path, body, token string) *httptest.ResponseRecorder {
		req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		req.Header.Set(tokenHeader, token)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		return w
	}
	for _, step := range []struct {
		what    string
		said    mmds.Metadata
		failure error
		body    string
		status  int
		opens   string // the token that does afterwards
		envs    string
	}{
		{
			"a program of the sandbox that is there before the host", mmds.Metadata{SandboxID: "sb1", AccessTokenHash: hashOf("one")}, nil,
			`{"accessToken":"mine"}`, 401, "", `{"E2B_SANDBOX":"true"}`,
		},
		{
			"one that wants no token to be set", mmds.Metadata{SandboxID: "sb1", AccessTokenHash: hashOf("one")}, nil,
			``, 401, "", `{"E2B_SANDBOX":"true"}`,
		},
		{
			"the first one", mmds.Metadata{SandboxID: "sb1", TemplateID: "base", AccessTokenHash: hashOf("one")}, nil,
			`{"accessToken":"one"}`, 204, "one", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb1","E2B_TEMPLATE_ID":"base"}`,
		},
		{
			"another sandbox from its memory", mmds.Metadata{SandboxID: "sb2", TemplateID: "base", AccessTokenHash: hashOf("two")}, nil,
			`{"accessToken":"two"}`, 204, "two", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb2","E2B_TEMPLATE_ID":"base"}`,
		},
		{
			"a stranger", mmds.Metadata{SandboxID: "sb3", AccessTokenHash: hashOf("two")}, nil,
			`{"accessToken":"guess"}`, 401, "two", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb2","E2B_TEMPLATE_ID":"base"}`,
		},
		{
			"a stranger who knows the hash", mmds.Metadata{AccessTokenHash: hashOf("two")}, nil,
			`{"accessToken":"` + hashOf("two") + `"}`, 401, "two", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb2","E2B_TEMPLATE_ID":"base"}`,
		},
		{
			"a stranger without a token", mmds.Metadata{}, nil,
			``, 401, "two", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb2","E2B_TEMPLATE_ID":"base"}`,
		},
		{
			"a request that knows better", mmds.Metadata{SandboxID: "sb2", TemplateID: "base"}, nil,
			`{"accessToken":"two","sandboxID":"sb4","templateID":"mine"}`, 204, "two", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb4","E2B_TEMPLATE_ID":"mine"}`,
		},
		{
			"no service any more", mmds.Metadata{}, errors.New("nobody there"),
			`{"accessToken":"two"}`, 204, "two", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb4","E2B_TEMPLATE_ID":"mine"}`,
		},
		{
			"a host that wants the sandbox open", mmds.Metadata{AccessTokenHash: hashOf("")}, nil,
			``, 204, "", `{"E2B_SANDBOX":"true","E2B_SANDBOX_ID":"sb4","E2B_TEMPLATE_ID":"mine"}`,
		},
	} {
		said, failure = step.said, step.failure
		if w := ask(http.MethodPost, "/init", step.body, ""); w.Code != step.status {
			t.Errorf("%s: %d %s", step.what, w.Code, w.Body)
		}
		if w := ask(http.MethodGet, "/envs", "", step.opens); w.Code != http.StatusOK || w.Body.String() != step.envs {
			t.Errorf("after %s: %d %s", step.what, w.Code, w.Body)
		}
	}
	if asked != 10 {
		t.Errorf("asked %d times", asked)
	}
}

// The variables that tell a program where it is are the sandbox's alone, set or not.
func TestOwnVariablesCannotBeForged(t *testing.T) {
	g := newGuest(t)
	resp, body := g.do(t, "POST", "/init", strings.NewReader(
		`{"envVars":{"A":"b","E2B_SANDBOX":"x","E2B_SANDBOX_ID":"x","E2B_TEMPLATE_ID":"x","E2B_EVENTS_ADDRESS":"x"}}`))
	g.want(t, resp, body, 204, "")
	resp, body = g.do(t, "GET", "/envs", nil)
	g.want(t, resp, body, 200, "")
	if body != `{"A":"b","E2B_SANDBOX":"true"}` {
		t.Errorf("%s", body)
	}
}
