package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// program makes the program of this machine that stands for a sandbox's command.
func (s *fakeServer) program(ctx context.Context, name string, args []string, envs map[string]string, cwd string) (*exec.Cmd, error) {
	if _, err := exec.LookPath(name); err != nil {
		return nil, fault.New(fault.InvalidRequest, "there is no program %q in the PATH", name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = s.path(cwd)
	// The whole group, or a shell's children would keep the pipes open.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + s.home}
	for k, v := range envs {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd, nil
}

func endOf(ctx context.Context, err error) ended {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return ended{}
	}
	e := ended{ExitCode: exit.ExitCode(), TimedOut: errors.Is(ctx.Err(), context.DeadlineExceeded)}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		e.Signal = unix.SignalName(status.Signal())
	}
	return e
}

func (s *fakeServer) exec(w http.ResponseWriter, r *http.Request) error {
	sb, err := s.find(r)
	if err != nil {
		return err
	}
	want, err := body[api.ExecRequest](r)
	if err != nil {
		return err
	}
	if want.Background {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.processes = append(s.processes, api.Process{Pid: 42, Tag: want.Tag, Cmd: want.Cmd, Args: want.Args})
		return answer(w, http.StatusAccepted, api.ExecStarted{SandboxID: sb.ID, Cmd: want.Cmd, Pid: 42, Tag: want.Tag})
	}
	ctx := r.Context()
	if want.TimeoutSec == nil {
		return fault.New(fault.InvalidRequest, "the default of 30 s is not what the command line promises")
	}
	if *want.TimeoutSec > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*want.TimeoutSec)*time.Second)
		defer cancel()
	}
	cmd, err := s.program(ctx, want.Cmd, want.Args, want.Envs, want.Cwd)
	if err != nil {
		return err
	}
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(want.Stdin), &out, &errOut
	if err := cmd.Start(); err != nil {
		return err
	}
	s.started <- struct{}{}
	how := endOf(ctx, cmd.Wait())
	result := api.ExecResult{
		SandboxID: sb.ID, Cmd: want.Cmd, Stdout: out.String(), Stderr: errOut.String(), Encoding: api.UTF8,
		ExitCode: int32(how.ExitCode), Signal: how.Signal, TimedOut: how.TimedOut, DurationMs: 7,
	}
	if !utf8.Valid(out.Bytes()) {
		result.Encoding = api.Base64
		result.Stdout = base64.StdEncoding.EncodeToString(out.Bytes())
		result.Stderr = base64.StdEncoding.EncodeToString(errOut.Bytes())
	}
	return answer(w, http.StatusOK, result)
}

// fakeMessage is a message to the client; unlike serverMessage it leaves out what is
// not set, as the real server does.
type fakeMessage struct {
	Type     string     `json:"type"`
	Data     string     `json:"data,omitempty"`
	Encoding string     `json:"encoding,omitempty"`
	Code     fault.Code `json:"code,omitempty"`
	Pid      int        `json:"pid,omitempty"`
	ExitCode int        `json:"exit_code"`
	Signal   string     `json:"signal,omitempty"`
	TimedOut bool       `json:"timed_out,omitempty"`
}

// fakeStream is the server's end of one exec/stream.
type fakeStream struct {
	conn *websocket.Conn
}

func (x *fakeStream) send(m fakeMessage) {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	_ = x.conn.Write(context.Background(), websocket.MessageText, text) // the client may be gone
}

// output sends what is written to it as messages of one kind.
type output struct {
	stream *fakeStream
	kind   string
}

func (o output) Write(p []byte) (int, error) {
	m := fakeMessage{Type: o.kind, Data: string(p)}
	if !utf8.Valid(p) {
		m.Data, m.Encoding = base64.StdEncoding.EncodeToString(p), "base64"
	}
	o.stream.send(m)
	return len(p), nil
}

func (s *fakeServer) execStream(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20) // as the API says
	x := &fakeStream{conn: conn}
	start, err := x.receive()
	if err != nil || start.Type != "start" {
		return nil
	}
	s.run(x, start)
	return nil
}

// run runs a command and closes the WebSocket after its end.
func (s *fakeServer) run(x *fakeStream, start clientMessage) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if start.TimeoutSec > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(start.TimeoutSec)*time.Second)
		defer cancel()
	}
	defer x.conn.Close(websocket.StatusNormalClosure, "")
	cmd, err := s.program(ctx, start.Cmd, start.Args, start.Envs, start.Cwd)
	if err != nil {
		x.send(fakeMessage{Type: "error", Data: fault.MessageOf(err), Code: fault.CodeOf(err)})
		return
	}
	cmd.Stdout, cmd.Stderr = output{x, "stdout"}, output{x, "stderr"}
	var stdin io.WriteCloser
	if start.Stdin {
		if stdin, err = cmd.StdinPipe(); err != nil {
			panic(err)
		}
	}
	if err := cmd.Start(); err != nil {
		x.send(fakeMessage{Type: "error", Data: err.Error()})
		return
	}
	x.send(fakeMessage{Type: "start", Pid: cmd.Process.Pid})
	s.started <- struct{}{}
	var listening sync.WaitGroup
	listening.Go(func() { x.listen(stdin, cancel) })
	if s.does("cuts-streams") {
		_ = x.conn.CloseNow()
		cancel()
	}
	how := endOf(ctx, cmd.Wait())
	if start.Stdin {
		// As a server may that gets stdin just after the command's end.
		x.send(fakeMessage{Type: "error", Data: "the process has ended"})
	}
	x.send(fakeMessage{Type: "exit", ExitCode: how.ExitCode, Signal: how.Signal, TimedOut: how.TimedOut})
	_ = x.conn.Close(websocket.StatusNormalClosure, "")
	listening.Wait()
}

func (x *fakeStream) receive() (clientMessage, error) {
	_, text, err := x.conn.Read(context.Background())
	if err != nil {
		return clientMessage{}, err
	}
	var m clientMessage
	err = json.Unmarshal(text, &m)
	return m, err
}

// listen does what the client says until it says no more.
func (x *fakeStream) listen(stdin io.WriteCloser, stop func()) {
	for {
		m, err := x.receive()
		if err != nil {
			return
		}
		switch m.Type {
		case "stdin":
			data := []byte(m.Data)
			if m.Encoding == "base64" {
				if data, err = base64.StdEncoding.DecodeString(m.Data); err != nil {
					panic(err)
				}
			}
			_, _ = stdin.Write(data) // the program may have ended
		case "stdin_close":
			_ = stdin.Close()
		case "stop":
			stop()
		}
	}
}
