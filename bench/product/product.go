// Package product runs a Wrenn of a benchmark's or a test's own and speaks to it over its public API, as
// any client does. It must know nothing of the floors.
package product

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
	"strconv"
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

// Options say what to run.
type Options struct {
	Bin    string   // directory of the built programs
	Images string   // directory of the built images
	Args   []string // more arguments of `wrenn up`
}

// Server is a `wrenn up` of one's own.
type Server struct {
	profile profile.Profile
	// Instance is the id of its data directory, and Data that directory.
	Instance string
	Data     string
	cmd      *exec.Cmd
	exited   chan error
	log      string
	client   *http.Client
}

// Start starts a server whose files are in dir, and returns when it is ready.
func Start(ctx context.Context, o Options, dir string) (*Server, error) {
	data := filepath.Join(dir, "data")
	s := &Server{Data: data, exited: make(chan error, 1), log: filepath.Join(dir, "up.log"), client: &http.Client{}}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Not bound to ctx: it ends by stop, so that it can tidy up.
	args := append([]string{"up", "--listen", "127.0.0.1:0", "--data-dir", data, "--image-dir", o.Images}, o.Args...)
	s.cmd = exec.Command(filepath.Join(o.Bin, "wrenn"), args...) //nolint:noctx // see above
	s.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME=")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.exited <- s.cmd.Wait() }()
	if err := s.awaitReady(ctx, data); err != nil {
		text, _ := os.ReadFile(s.log)
		return nil, errors.Join(fmt.Errorf("start wrenn: %w; its log:\n%s", err, text), s.Stop())
	}
	return s, nil
}

func (s *Server) awaitReady(ctx context.Context, data string) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		var err error
		if s.profile, err = profile.Read(filepath.Join(data, "credentials.json")); err == nil {
			if err = s.Do(ctx, http.MethodGet, "/readyz", nil, nil); err == nil {
				instance, err := os.ReadFile(filepath.Join(data, "instance"))
				s.Instance = strings.TrimSpace(string(instance))
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

// Stop ends the server.
func (s *Server) Stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case err := <-s.exited:
		return err
	case <-time.After(stopLimit):
		_ = s.cmd.Process.Kill()
		return errors.New("wrenn did not stop in time")
	}
}

// maxComplaints is how many lines of its log a server is quoted with.
const maxComplaints = 30

// Explain adds to an error the latest that the server has complained of in its log.
func (s *Server) Explain(err error) error {
	if err == nil {
		return nil
	}
	text, readErr := os.ReadFile(s.log)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			lines = append(lines, line)
		}
	}
	lines = lines[max(0, len(lines)-maxComplaints):]
	return fmt.Errorf("%w; its server's complaints:\n%s", err, strings.Join(lines, ""))
}

// Send makes a request, with a body that is a reader or is sent as JSON, and returns an
// answer that is not an error. The caller closes its body.
func (s *Server) Send(ctx context.Context, method, path string, body any) (*http.Response, error) {
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

// Do is Send with the answer decoded into result, unless that is nil.
func (s *Server) Do(ctx context.Context, method, path string, body, result any) error {
	resp, err := s.Send(ctx, method, path, body)
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

// Create creates a sandbox and returns its id.
func (s *Server) Create(ctx context.Context, request api.CreateSandboxRequest) (string, error) {
	var made api.Sandbox
	err := s.Do(ctx, http.MethodPost, "/v1/sandboxes", request, &made)
	return made.ID, err
}

// Remove deletes a sandbox.
func (s *Server) Remove(ctx context.Context, id string) error {
	return s.Do(ctx, http.MethodDelete, "/v1/sandboxes/"+id, nil, nil)
}

// Exec runs a command that must end with 0 and returns its output.
func (s *Server) Exec(ctx context.Context, id, cmd string, args ...string) (string, error) {
	var result api.ExecResult
	err := s.Do(ctx, http.MethodPost, "/v1/sandboxes/"+id+"/exec", api.ExecRequest{Cmd: cmd, Args: args}, &result)
	if err == nil && result.ExitCode != 0 {
		err = fmt.Errorf("%s ended with %d: %s", cmd, result.ExitCode, result.Stderr)
	}
	return result.Stdout, err
}

// Memory is a figure of the server process's status, in MiB.
func (s *Server) Memory(field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			var kib float64
			_, err := fmt.Sscan(rest, &kib)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("the server's status has no %s", field)
}

// URL is the server's address.
func (s *Server) URL() string { return s.profile.APIURL }

// Key authorises requests there.
func (s *Server) Key() string { return s.profile.APIKey }

// Pid is the server's process id.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// ProcessorTime is what the server itself has had of the processors.
func (s *Server) ProcessorTime() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Pid()))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may have blanks in it; fields are counted after it.
	const user, system, tick = 11, 12, 10 * time.Millisecond
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) <= system {
		return 0, fmt.Errorf("the server's times are unreadable: %q", text)
	}
	var sum time.Duration
	for _, field := range [][]byte{fields[user], fields[system]} {
		n, err := strconv.Atoi(string(field))
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// ForgetPeak makes VmHWM begin anew.
func (s *Server) ForgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.cmd.Process.Pid), []byte("5"), 0)
}

// BaseImage returns the path of the base image, which is built when it is not there.
func BaseImage(ctx context.Context, o Options) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(o.Bin, "wrenn"), "image", "build", "--image-dir", o.Images)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the base image: %w", err)
	}
	const path = 1
	fields := strings.Fields(string(out))
	if len(fields) <= path {
		return "", fmt.Errorf("`wrenn image build` said %q", out)
	}
	return fields[path], nil
}
