package rpc

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"

	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

func basic(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
}

// TestUnknownUsersAreRefusedEverywhere asks also what needs no user, before a token is set and
// after.
func TestUnknownUsersAreRefusedEverywhere(t *testing.T) {
	g := newGuest(t)
	bad := map[string]string{
		basic("ghost:"): "invalid username: 'ghost'", basic("ghost"): "invalid username: 'ghost'",
		"Basic !": "cannot be read", "basic Z": "cannot be read",
	}
	fine := []string{"", basic("nobody:"), basic("root:password"), basic(":"), "Bearer abc"}
	secret := ""
	for range 2 {
		ask := func(method, path, authorization string, more ...string) (*http.Response, string) {
			headers := append([]string{"Content-Type", "application/json"}, more...)
			if secret != "" {
				headers = append(headers, tokenHeader, secret)
			}
			if authorization != "" {
				headers = append(headers, "Authorization", authorization)
			}
			return g.do(t, method, path, strings.NewReader("{}"), headers...)
		}
		for authorization, says := range bad {
			for _, method := range []string{
				"process.Process/List", "process.Process/SendSignal", "process.Process/SendInput", "process.Process/CloseStdin", "process.Process/Update",
				"filesystem.Filesystem/Stat", "filesystem.Filesystem/GetWatcherEvents", "filesystem.Filesystem/RemoveWatcher",
			} {
				resp, body := ask("POST", "/"+method, authorization)
				g.want(t, resp, body, 401, `{"code":"unauthenticated","message":"`)
				g.want(t, resp, body, 401, says)
			}
			for _, method := range []string{"process.Process/Start", "process.Process/Connect", "process.Process/StreamInput", "filesystem.Filesystem/WatchDir"} {
				resp, body := ask("POST", "/"+method, authorization, "Content-Type", "application/connect+json")
				g.want(t, resp, body, 200, `{"error":{"code":"unauthenticated","message":"`)
				g.want(t, resp, body, 200, says)
			}
			for _, path := range []string{"/metrics", "/envs", "/ports", "/files?path=/etc/passwd", "/nowhere"} {
				resp, body := ask("GET", path, authorization)
				g.want(t, resp, body, 401, `{"code":401,"message":"`)
				g.want(t, resp, body, 401, says)
			}
			resp, body := ask("GET", "/health", authorization)
			g.want(t, resp, body, 204, "")
		}
		for _, authorization := range fine {
			resp, body := ask("POST", "/process.Process/List", authorization)
			g.want(t, resp, body, 200, "{}")
		}
		_, err := g.process.List(t.Context(), as("ghost", &processpb.ListRequest{}))
		if secret == "" {
			wantConnect(t, err, connect.CodeUnauthenticated, "invalid username: 'ghost'")
		}
		secret = "secret"
		resp, body := g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"secret"}`))
		g.want(t, resp, body, 204, "")
	}
	// The token comes first: who does not have it learns of no users.
	resp, body := g.do(t, "POST", "/process.Process/List", strings.NewReader("{}"), "Content-Type", "application/json", "Authorization", basic("ghost:"))
	g.want(t, resp, body, 401, `{"code":401,"message":"unauthorized access`)
}

// Basic authorization names whom a command runs as, and nobody's files.
func TestBasicUserNamesNobodysFiles(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	resp, body := g.do(t, "POST", at(dir+"/f"), strings.NewReader("x"), "Content-Type", octets, "Authorization", basic("nobody:"))
	g.want(t, resp, body, 200, "")
	if got := uid(t, dir+"/f"); got != 0 {
		t.Errorf("the file is %d's", got)
	}
	resp, body = g.do(t, "POST", "/files/compose", strings.NewReader(`{"source_paths":["`+dir+`/f"],"destination":"`+dir+`/to"}`), "Authorization", basic("nobody:"))
	g.want(t, resp, body, 200, "")
	if got := uid(t, dir+"/to"); got != 0 {
		t.Errorf("the composed file is %d's", got)
	}
	resp, body = g.do(t, "POST", at(dir+"/f", "username", "nobody"), strings.NewReader("x"), "Content-Type", octets)
	g.want(t, resp, body, 200, "")
	if got := uid(t, dir+"/f"); got != 65534 {
		t.Errorf("the file is %d's", got)
	}
}

func TestWhatIsNotServedIsToldInJSON(t *testing.T) {
	g := newGuest(t)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/nowhere", 404, ""},
		{"POST", "/files/none", 404, ""},
		{"POST", "/process.Process/Nope", 404, ""},
		{"GET", "/process.Process", 404, ""},
		{"POST", "/filesystem.Filesystem/", 404, ""},
		{"GET", "/process.Process/List", 405, "POST"},
		{"PUT", "/filesystem.Filesystem/Stat", 405, "POST"},
		{"PUT", "/files", 405, "GET, HEAD, POST"},
		{"POST", "/health", 405, "GET, HEAD"},
		{"GET", "/init", 405, "POST"},
		{"DELETE", "/metrics", 405, "GET, HEAD"},
		{"GET", "/snapshot/prepare", 405, "POST"},
	} {
		resp, body := g.do(t, c.method, c.path, strings.NewReader("{}"), "Content-Type", "application/json")
		var got struct {
			Code    int
			Message string
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != c.status || got.Code != c.status || !strings.Contains(got.Message, c.path) ||
			resp.Header.Get("Content-Type") != "application/json; charset=utf-8" || resp.Header.Get("Allow") != c.allow {
			t.Errorf("%s %s: %d %q %v, %v", c.method, c.path, resp.StatusCode, body, resp.Header, err)
		}
	}
	resp, body := g.do(t, "POST", "/init", strings.NewReader(`{"accessToken":"secret"}`))
	g.want(t, resp, body, 204, "")
	for _, path := range []string{"/nowhere", "/process.Process/Nope"} {
		resp, body = g.do(t, "POST", path, nil)
		g.want(t, resp, body, 401, `{"code":401,"message":"unauthorized access`)
	}
}

// Fields may be written as in the schema or in camel case, and unknown ones are passed over.
func TestJSONOfRequests(t *testing.T) {
	g := newGuest(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/f", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"allow_network_mounts", "allowNetworkMounts"} {
		resp, body := g.do(t, "POST", "/filesystem.Filesystem/CreateWatcher", strings.NewReader(`{"path":"`+dir+`","`+field+`":true,"newer":[{}]}`), "Content-Type", "application/json")
		g.want(t, resp, body, 200, `"watcherId":"`)
	}
	resp, body := g.do(t, "POST", "/filesystem.Filesystem/Stat", strings.NewReader(`{"path":"`+dir+`/f"}`), "Content-Type", "application/json", "Connect-Protocol-Version", "1")
	g.want(t, resp, body, 200, "")
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("an answer is %s", got)
	}
	var got struct {
		Entry map[string]any `json:"entry"`
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	// Zero values are left out, enumerations are names, times are RFC 3339.
	if _, there := got.Entry["size"]; there || got.Entry["type"] != "FILE_TYPE_FILE" || !strings.HasSuffix(got.Entry["modifiedTime"].(string), "Z") || got.Entry["mode"] != float64(0o644) {
		t.Errorf("%s", body)
	}
	if err := os.WriteFile(dir+"/f", []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	resp, body = g.do(t, "POST", "/filesystem.Filesystem/Stat", strings.NewReader(`{"path":"`+dir+`/f"}`), "Content-Type", "application/json")
	g.want(t, resp, body, 200, "")
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Entry["size"] != "5" {
		t.Errorf("a 64-bit number: %s", body)
	}
	_, err := g.jsonFiles.Stat(t.Context(), as("", &filesystempb.StatRequest{Path: dir + "/none"}))
	wantConnect(t, err, connect.CodeNotFound, "does not exist")
	resp, body = g.do(t, "POST", "/filesystem.Filesystem/Stat", strings.NewReader(`{"path":"`+dir+`/none"}`), "Content-Type", "application/json")
	g.want(t, resp, body, 404, `{"code":"not_found","message":"path '`+dir+`/none' does not exist"}`)
}
