package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/profile"
)

const (
	// dialTimeout bounds how long a server that does not answer keeps a person waiting.
	dialTimeout = 10 * time.Second
	// transferBuffer is the size of the buffers of a connection in bytes; the default of
	// 4 KiB halves the speed of large files.
	transferBuffer = 1 << 20
	// maxJSONBody bounds what is read of a JSON answer, in bytes. An exec answers with at
	// most 2 × 10 MiB of output, which base64 and escapes make larger.
	maxJSONBody = 256 << 20
)

// discover says where the server is: the environment first, then the profile.
func discover() (profile.Profile, error) {
	at := profile.Profile{APIURL: os.Getenv("WRENN_BASE_URL"), APIKey: os.Getenv("WRENN_API_KEY")}
	if at.APIURL != "" && at.APIKey != "" {
		return at, nil
	}
	path, err := profile.Path()
	if err != nil {
		return profile.Profile{}, err
	}
	saved, err := profile.Read(path)
	switch {
	case fault.Is(err, fault.NotFound) && at.APIURL != "":
		return profile.Profile{}, fault.New(fault.Unauthorized, "no API key for %s: set WRENN_API_KEY", at.APIURL)
	case fault.Is(err, fault.NotFound):
		return profile.Profile{}, fault.New(fault.InvalidRequest,
			"no server is known: start one with `wrenn up`, or set WRENN_BASE_URL and WRENN_API_KEY (no profile at %s)", path)
	case err != nil:
		return profile.Profile{}, err
	case at.APIURL == "":
		at.APIURL = saved.APIURL
	}
	if at.APIKey == "" {
		// The profile's key is for the profile's server and nobody else.
		if strings.TrimSuffix(at.APIURL, "/") != strings.TrimSuffix(saved.APIURL, "/") {
			return profile.Profile{}, fault.New(fault.Unauthorized, "no API key for %s: set WRENN_API_KEY (the profile's key is for %s)", at.APIURL, saved.APIURL)
		}
		at.APIKey = saved.APIKey
	}
	return at, nil
}

// server is the API of one Wrenn server. It is safe for concurrent use.
type server struct {
	api  *api.Client
	http *http.Client
	at   profile.Profile
}

// connect finds the server. It does not call it yet.
func connect() (*server, error) {
	at, err := discover()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(at.APIURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.New(fault.InvalidRequest, "the server's address %q is not a URL such as http://127.0.0.1:8080; correct WRENN_BASE_URL", at.APIURL)
	}
	s := &server{at: at, http: &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		DialContext:     (&net.Dialer{Timeout: dialTimeout}).DialContext,
		WriteBufferSize: transferBuffer,
		ReadBufferSize:  transferBuffer,
	}}}
	s.api, err = api.NewClient(at.APIURL, api.WithHTTPClient(s))
	if err != nil {
		return nil, fault.Wrap(err, fault.InvalidRequest, "the server's address %q cannot be used", at.APIURL)
	}
	return s, nil
}

// Do sends a request with the key and turns failures of any kind into errors. It makes
// the server the HTTP client of the generated one.
func (s *server) Do(req *http.Request) (*http.Response, error) {
	s.authorise(req.Header)
	dropEmptyParameters(req.URL)
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, s.unreachable(err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer resp.Body.Close()
		return nil, s.refused(resp)
	}
	return resp, nil
}

// dropEmptyParameters takes away the query parameters that were not given: the generated
// client sends each of them, and to the server an empty one is a wrong one. A label to
// filter by may be empty.
func dropEmptyParameters(u *url.URL) {
	q := u.Query()
	maps.DeleteFunc(q, func(name string, values []string) bool {
		return !strings.HasPrefix(name, labelParameter) && strings.Join(values, "") == ""
	})
	u.RawQuery = q.Encode()
}

// labelParameter begins the names of the query parameters that filter by metadata.
const labelParameter = "metadata."

func (s *server) authorise(h http.Header) {
	h.Set("X-API-Key", s.at.APIKey)
	h.Set("User-Agent", "wrenn-cli")
}

// unreachable is the error for a request that got no answer.
func (s *server) unreachable(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var inside *url.Error
	if errors.As(err, &inside) {
		err = inside.Err // without the URL, which the message has
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return fault.Wrap(err, fault.HostUnavailable, "no Wrenn server answers at %s; start it with `wrenn up`, or set WRENN_BASE_URL", s.at.APIURL)
	}
	return fault.Wrap(err, fault.HostUnavailable, "the connection to the Wrenn server at %s failed", s.at.APIURL)
}

// refused is the error for an answer with an error status.
func (s *server) refused(resp *http.Response) error {
	err := fault.ReadHTTP(resp)
	if fault.Is(err, fault.Unauthorized) {
		return fault.New(fault.Unauthorized, "the server at %s refuses the API key: %s", s.at.APIURL, fault.MessageOf(err))
	}
	if resp.StatusCode == http.StatusNotFound && !fault.Is(err, fault.NotFound) {
		return fault.New(fault.AgentError, "%s does not look like a Wrenn server: it answered %q", s.at.APIURL, resp.Status)
	}
	return err
}

// decode reads the JSON answer of a call.
func decode[T any](resp *http.Response, err error) (T, error) {
	var v T
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxJSONBody)).Decode(&v); err != nil {
		return v, fault.Wrap(err, fault.AgentError, "the server's answer is not what the API says; is it of another version?")
	}
	return v, nil
}

// discard ends a call whose answer has no contents.
func discard(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// sandboxes lists the sandboxes that match, all pages of them.
func (s *server) sandboxes(ctx context.Context, status, template string, metadata map[string]string) ([]api.Sandbox, error) {
	const pageSize = 1000
	params := &api.ListSandboxesParams{Status: api.SandboxStatus(status), Template: template, Limit: pageSize}
	withMetadata := func(_ context.Context, req *http.Request) error {
		q := req.URL.Query()
		for k, v := range metadata {
			q.Set(labelParameter+k, v)
		}
		req.URL.RawQuery = q.Encode()
		return nil
	}
	all := []api.Sandbox{}
	for {
		resp, err := s.api.ListSandboxes(ctx, params, withMetadata)
		page, err := decode[[]api.Sandbox](resp, err)
		if err != nil {
			return nil, fmt.Errorf("list sandboxes: %w", err)
		}
		all = append(all, page...)
		next := resp.Header.Get("X-Next-Cursor")
		if next == "" || next == params.Cursor {
			return all, nil
		}
		params.Cursor = next
	}
}

// stat describes one path of a sandbox.
func (s *server) stat(ctx context.Context, id, path, user string) (api.FileEntry, error) {
	result, err := decode[api.FileResult](s.api.StatFile(ctx, id, api.PathRequest{Path: path, User: user}))
	return result.Entry, err
}
