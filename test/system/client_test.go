package system_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"
)

// requestLimit bounds a request whose test does not say otherwise.
const requestLimit = 60 * time.Second

// answer is what the API answered.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// object is a JSON object as a client that knows nothing of our types has it.
type object map[string]any

func (a answer) object(t testing.TB) object {
	t.Helper()
	var o object
	if err := json.Unmarshal(a.body, &o); err != nil {
		t.Fatalf("status %d with a body that is not a JSON object: %v: %.300q", a.status, err, a.body)
	}
	return o
}

// fault returns the code and message of an error in the documented shape.
func (a answer) fault(t testing.TB) (code, message string) {
	t.Helper()
	var e struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.body, &e); err != nil || e.Error.Code == "" || e.Error.Message == "" {
		t.Errorf("status %d without an error in the documented shape: %.300q", a.status, a.body)
	}
	return e.Error.Code, e.Error.Message
}

// request makes a request of the API. A body that is not a reader is sent as JSON.
func (p *program) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var reader io.Reader
	contentType := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, contentType = b, "application/octet-stream"
	case string:
		reader = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, reader)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", p.key)
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	return req, nil
}

// try is call for those who must not end a test: other goroutines.
func (p *program) try(ctx context.Context, method, path string, body any) (answer, error) {
	req, err := p.request(ctx, method, path, body)
	if err != nil {
		return answer{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, text}, err
}

func (p *program) call(t testing.TB, method, path string, body any) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
	defer cancel()
	a, err := p.try(ctx, method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// sandbox is one that a test made.
type sandbox struct {
	p    *program
	id   string
	info object
}

// newSandbox makes a sandbox that goes with the test.
func newSandbox(t testing.TB, p *program, fields object) *sandbox {
	t.Helper()
	if fields == nil {
		fields = object{}
	}
	a := p.call(t, http.MethodPost, "/v1/sandboxes", fields)
	if a.status != http.StatusCreated {
		t.Fatalf("create answered %d: %s", a.status, a.body)
	}
	s := &sandbox{p: p, info: a.object(t)}
	s.id, _ = s.info["id"].(string)
	p.seen.look()
	t.Cleanup(func() {
		select {
		case <-p.exited:
			return // and with it the sandbox
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
		defer cancel()
		a, err := p.try(ctx, http.MethodDelete, s.path(""), nil)
		if err != nil || (a.status != http.StatusNoContent && a.status != http.StatusNotFound) {
			t.Errorf("delete answered %d (%v): %s", a.status, err, a.body)
		}
	})
	return s
}

func (s *sandbox) path(rest string) string { return "/v1/sandboxes/" + s.id + rest }

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
	signal         string
	timedOut       bool
	truncated      bool
	encoding       string
}

// decodeResult reads the answer of an exec.
func decodeResult(body []byte) (result, error) {
	var r struct {
		Stdout, Stderr, Encoding, Signal string
		ExitCode                         int  `json:"exit_code"`
		TimedOut                         bool `json:"timed_out"`
		Truncated                        bool
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return result{}, err
	}
	out := result{r.Stdout, r.Stderr, r.ExitCode, r.Signal, r.TimedOut, r.Truncated, r.Encoding}
	if r.Encoding == "base64" {
		for _, text := range []*string{&out.stdout, &out.stderr} {
			plain, err := base64.StdEncoding.DecodeString(*text)
			if err != nil {
				return result{}, err
			}
			*text = string(plain)
		}
	}
	return out, nil
}

// tryExec runs a command for those who must not end a test.
func (s *sandbox) tryExec(ctx context.Context, fields object) (result, error) {
	a, err := s.p.try(ctx, http.MethodPost, s.path("/exec"), fields)
	if err != nil {
		return result{}, err
	}
	if a.status != http.StatusOK {
		return result{}, fmt.Errorf("exec answered %d: %.500s", a.status, a.body)
	}
	return decodeResult(a.body)
}

func (s *sandbox) exec(t testing.TB, fields object) result {
	t.Helper()
	const margin = 10 * time.Second
	limit := requestLimit
	if sec, ok := fields["timeout_sec"].(int); ok {
		limit = time.Duration(sec)*time.Second + margin
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	r, err := s.tryExec(ctx, fields)
	if err != nil {
		t.Fatalf("%v: %v", fields["cmd"], err)
	}
	return r
}

// sh runs a shell script that must succeed and returns its output without the last line
// ends.
func (s *sandbox) sh(t testing.TB, script string) string {
	t.Helper()
	const limit = 120 // seconds: some use the network
	r := s.exec(t, object{"cmd": "sh", "args": []string{"-c", script}, "timeout_sec": limit})
	if r.code != 0 {
		t.Fatalf("%s\nended with %d %s\nstdout: %s\nstderr: %s", script, r.code, r.signal, r.stdout, r.stderr)
	}
	return strings.TrimRight(r.stdout, "\n")
}

// answers reports whether the sandbox runs a command within a limit.
func (s *sandbox) answers(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := s.tryExec(ctx, object{"cmd": "echo", "args": []string{"here"}})
	if err == nil && r.stdout != "here\n" {
		err = fmt.Errorf("echo said %q", r.stdout)
	}
	return err
}

func (s *sandbox) status(t testing.TB) (status, reason string) {
	t.Helper()
	o := s.p.call(t, http.MethodGet, s.path(""), nil).object(t)
	status, _ = o["status"].(string)
	reason, _ = o["reason"].(string)
	return status, reason
}

// upload streams contents into a file as a multipart form.
func (s *sandbox) upload(ctx context.Context, path string, contents io.Reader) (answer, error) {
	read, write := io.Pipe()
	form := multipart.NewWriter(write)
	go func() {
		err := form.WriteField("path", path)
		if err == nil {
			var part io.Writer
			if part, err = form.CreateFormFile("file", "contents"); err == nil {
				_, err = io.Copy(part, contents)
			}
		}
		if err == nil {
			err = form.Close()
		}
		_ = write.CloseWithError(err)
	}()
	req, err := s.p.request(ctx, http.MethodPost, s.path("/files/write"), read)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", form.FormDataContentType())
	resp, err := http.DefaultClient.Do(req)
	_ = read.Close() // an answer that comes early ends the writer
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, text}, err
}

// download opens a file's contents.
func (s *sandbox) download(ctx context.Context, path string) (*http.Response, error) {
	req, err := s.p.request(ctx, http.MethodPost, s.path("/files/read"), object{"path": path})
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}
