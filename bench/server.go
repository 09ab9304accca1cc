package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/profile"
)

const (
	readyLimit = time.Minute
	readyPoll  = 10 * time.Millisecond
	stopLimit  = time.Minute
)

// server is a `wrenn up` of the bench's own.
type server struct {
	profile  profile.Profile
	instance string
	cmd      *exec.Cmd
	exited   chan error
	log      string
	client   *http.Client
}

func startServer(ctx context.Context, o options, dir string) (*server, error) {
	s := &server{exited: make(chan error, 1), log: filepath.Join(dir, "up.log"), client: &http.Client{}}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	data := filepath.Join(dir, "data")
	// Not bound to ctx: it ends by stop, so that it can tidy up.
	s.cmd = exec.Command(filepath.Join(o.bin, "wrenn"), "up", "--listen", "127.0.0.1:0", "--data-dir", data, "--image-dir", o.images) //nolint:noctx // see above
	s.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME=")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.exited <- s.cmd.Wait() }()
	if err := s.awaitReady(ctx, data); err != nil {
		text, _ := os.ReadFile(s.log)
		return nil, errors.Join(fmt.Errorf("start wrenn: %w; its log:\n%s", err, text), s.stop())
	}
	return s, nil
}

func (s *server) awaitReady(ctx context.Context, data string) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		var err error
		if s.profile, err = profile.Read(filepath.Join(data, "credentials.json")); err == nil {
			if err = s.do(ctx, http.MethodGet, "/readyz", nil, nil); err == nil {
				instance, err := os.ReadFile(filepath.Join(data, "instance"))
				s.instance = strings.TrimSpace(string(instance))
				return err
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case err := <-s.exited:
			s.exited <- err
			return errors.New("it ended before it was ready")
		case <-tick.C:
		}
	}
}

func (s *server) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case err := <-s.exited:
		return err
	case <-time.After(stopLimit):
		_ = s.cmd.Process.Kill()
		return errors.New("wrenn did not stop in time")
	}
}

// send makes a request, with a body that is a reader or is sent as JSON, and returns an
// answer that is not an error. The caller closes its body.
func (s *server) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	contentType := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, contentType = b, "application/octet-stream"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.profile.APIURL+path, reader)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", s.profile.APIKey)
	req.Header.Set("Content-Type", contentType)
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		defer resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %w", method, path, fault.ReadHTTP(resp))
	}
	return resp, nil
}

// do is send with the answer decoded into result, unless that is nil.
func (s *server) do(ctx context.Context, method, path string, body, result any) error {
	resp, err := s.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if result != nil {
		return json.NewDecoder(resp.Body).Decode(result)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (s *server) create(ctx context.Context) (string, error) {
	var made api.Sandbox
	err := s.do(ctx, http.MethodPost, "/v1/sandboxes", api.CreateSandboxRequest{}, &made)
	return made.ID, err
}

func (s *server) remove(ctx context.Context, id string) error {
	return s.do(ctx, http.MethodDelete, "/v1/sandboxes/"+id, nil, nil)
}

// exec runs a command that must end with 0 and returns its output.
func (s *server) exec(ctx context.Context, id, cmd string, args ...string) (string, error) {
	var result api.ExecResult
	err := s.do(ctx, http.MethodPost, "/v1/sandboxes/"+id+"/exec", api.ExecRequest{Cmd: cmd, Args: args}, &result)
	if err == nil && result.ExitCode != 0 {
		err = fmt.Errorf("%s ended with %d: %s", cmd, result.ExitCode, result.Stderr)
	}
	return result.Stdout, err
}
