package httpapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// fakeWeb is Ports and Web for one private sandbox.
type fakeWeb struct{}

func (fakeWeb) Find(_ context.Context, id string) (sandbox.Sandbox, error) {
	if id != "sb1" {
		return sandbox.Sandbox{}, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	return sandbox.Sandbox{ID: id, Web: sandbox.Web{TrafficToken: "secret"}}, nil
}

func (fakeWeb) Ports(_ context.Context, id string) ([]sandbox.Port, error) {
	if id != "sb1" {
		return nil, fault.New(fault.NotFound, "there is no sandbox %q", id)
	}
	return []sandbox.Port{
		{Number: 80, Addresses: []string{"::"}},
		{Number: 3000, Addresses: []string{"127.0.0.1"}, Processes: []sandbox.PortProcess{{PID: 7, Name: "node"}}},
	}, nil
}

func (fakeWeb) URL(id string, port int) string {
	return fmt.Sprintf("http://%d-%s.localhost/", port, id)
}

func (w fakeWeb) Link(sb sandbox.Sandbox, port int) (string, time.Time, error) {
	return w.URL(sb.ID, port) + "?link", t0, nil
}

func (fakeWeb) WriteMetrics(w io.Writer) error {
	_, err := io.WriteString(w, "wrenn_proxy_open 1\n")
	return err
}

func TestPorts(t *testing.T) {
	s := serve(t)
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/v1/sandboxes/sb1/ports", 200, `{"ports":[{"addresses":["::"],"port":80,"processes":[],"url":"http://80-sb1.localhost/"},` +
			`{"addresses":["127.0.0.1"],"port":3000,"processes":[{"name":"node","pid":7}],"url":"http://3000-sb1.localhost/"}]}`},
		{"GET", "/v1/capsules/sbx/ports", 404, `there is no sandbox`},
		{"POST", "/v1/sandboxes/sb1/ports/3000/link", 201, `{"expires_at":"2026-05-04T03:02:01Z","url":"http://3000-sb1.localhost/?link"}`},
		{"POST", "/v1/sandboxes/sbx/ports/3000/link", 404, `there is no sandbox`},
		{"POST", "/v1/sandboxes/sb1/ports/0/link", 400, `\"port\" must be at least 1`},
		{"POST", "/v1/sandboxes/sb1/ports/65536/link", 400, `\"port\" must be at most 65535`},
		{"POST", "/v1/sandboxes/sb1/ports/abc/link", 400, `\"port\" has the wrong form`},
		{"GET", "/metrics", 200, "wrenn_proxy_open 1"},
	} {
		a := s.do(t, c.method, c.path, "")
		if a.status != c.status || !strings.Contains(a.body, c.body) {
			t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
		}
	}
}

func TestMetricsWantAKey(t *testing.T) {
	s := serve(t)
	resp, err := http.Get(s.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("answered %d", resp.StatusCode)
	}
}

func TestWebFields(t *testing.T) {
	s := serve(t)
	var got sandbox.Options
	s.sandboxes.create = func(o sandbox.Options) (sandbox.Sandbox, error) {
		got = o
		return sandbox.Sandbox{ID: "sb1", Web: sandbox.Web{TrafficToken: "secret", AutoResume: true, MaskHost: "localhost"}}, nil
	}
	a := s.do(t, "POST", "/v1/sandboxes", `{"allow_public_traffic":false,"auto_resume":true,"mask_request_host":"localhost"}`)
	if want := (sandbox.WebOptions{Private: true, AutoResume: true, MaskHost: "localhost"}); got.Web != want {
		t.Errorf("asked for %+v", got.Web)
	}
	for _, field := range []string{`"allow_public_traffic":false`, `"traffic_token":"secret"`, `"auto_resume":true`, `"mask_request_host":"localhost"`} {
		if !strings.Contains(a.body, field) {
			t.Errorf("no %s in %s", field, a.body)
		}
	}
	if s.do(t, "POST", "/v1/sandboxes", `{"allow_public_traffic":true}`); got.Web.Private {
		t.Error("a public sandbox became private")
	}
}
