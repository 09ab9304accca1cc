package rpc

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

func sh(script string) *processpb.StartRequest {
	noStdin := false
	return &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}},
		Stdin:   &noStdin,
	}
}

// eventStream is a stream of Start or of Connect.
type eventStream interface {
	Receive() bool
	Err() error
	Close() error
	ResponseHeader() http.Header
	event() *processpb.ProcessEvent
}

type startStream struct {
	*connect.ServerStreamForClient[processpb.StartResponse]
}

func (s startStream) event() *processpb.ProcessEvent { return s.Msg().GetEvent() }

// run is one command as a client sees it.
type run struct {
	stream         eventStream
	pid            uint32
	stdout, stderr bytes.Buffer
	pty            bytes.Buffer
	keepAlives     int
	end            *processpb.ProcessEvent_EndEvent
}

// begin starts a command and takes its first event.
func begin(ctx context.Context, client processconnect.ProcessClient, req *connect.Request[processpb.StartRequest]) (*run, error) {
	stream, err := client.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	return first(startStream{stream})
}

// first takes the first event of a stream.
func first(stream eventStream) (*run, error) {
	r := &run{stream: stream}
	if !stream.Receive() {
		err := stream.Err()
		_ = stream.Close()
		return nil, err
	}
	start := stream.event().GetStart()
	if start == nil {
		_ = stream.Close()
		return nil, fmt.Errorf("the first event is %v", stream.event())
	}
	r.pid = start.GetPid()
	return r, nil
}

// next takes one event and says whether there was one.
func (r *run) next(t *testing.T) bool {
	t.Helper()
	if !r.stream.Receive() {
		return false
	}
	if r.end != nil {
		t.Errorf("an event after the end: %v", r.stream.event())
	}
	switch ev := r.stream.event().GetEvent().(type) {
	case *processpb.ProcessEvent_Data:
		r.stdout.Write(ev.Data.GetStdout())
		r.stderr.Write(ev.Data.GetStderr())
		r.pty.Write(ev.Data.GetPty())
	case *processpb.ProcessEvent_Keepalive:
		r.keepAlives++
	case *processpb.ProcessEvent_End:
		r.end = ev.End
	default:
		t.Errorf("unexpected event %v", ev)
	}
	return true
}

// finish runs a command to its end, or to the error of its stream.
func (r *run) finish(t *testing.T) error {
	t.Helper()
	defer r.stream.Close()
	for r.next(t) {
	}
	return r.stream.Err()
}

func runAll(t *testing.T, client processconnect.ProcessClient, req *connect.Request[processpb.StartRequest]) *run {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	r, err := begin(ctx, client, req)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.finish(t); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestStartTellsEverythingInBothCodecs(t *testing.T) {
	g := newGuest(t)
	for name, client := range map[string]processconnect.ProcessClient{"binary": g.process, "json": g.jsonProc} {
		r := runAll(t, client, as("", sh("echo out; echo err >&2; exit 3")))
		if r.pid == 0 || r.stdout.String() != "out\n" || r.stderr.String() != "err\n" {
			t.Errorf("%s: pid %d, %q, %q", name, r.pid, &r.stdout, &r.stderr)
		}
		if r.end.GetExitCode() != 3 || !r.end.GetExited() || r.end.GetStatus() != "exit status 3" || r.end.GetError() != "exit status 3" {
			t.Errorf("%s: end %v", name, r.end)
		}
		r = runAll(t, client, as("", sh("kill -9 $$")))
		if r.end.GetExitCode() != -1 || r.end.GetExited() || r.end.GetStatus() != "signal: killed" || r.end.GetError() != "signal: killed" {
			t.Errorf("%s: end %v", name, r.end)
		}
		r = runAll(t, client, as("", sh("exit 0")))
		if r.end.GetExitCode() != 0 || !r.end.GetExited() || r.end.GetStatus() != "exit status 0" || r.end.Error != nil {
			t.Errorf("%s: end %v", name, r.end)
		}
	}
}

func TestUserEnvironmentAndDirectory(t *testing.T) {
	t.Setenv("INHERITED", "never")
	g := newGuest(t)
	resp, body := g.do(t, "POST", "/init", strings.NewReader(`{"envVars":{"A":"default","B":"default"}}`))
	g.want(t, resp, body, 204, "")
	req := sh("id -un; pwd; env | sort")
	req.Process.Envs = map[string]string{"B": "asked"}
	r := runAll(t, g.process, as("nobody", req))
	want := []string{
		"nobody", "/", "A=default", "B=asked", "E2B_SANDBOX=true", "HOME=/nonexistent", "LOGNAME=nobody",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PWD=/", "USER=nobody", "",
	}
	if got := strings.Split(r.stdout.String(), "\n"); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	resp, body = g.do(t, "POST", "/init", strings.NewReader(`{"defaultUser":"nobody","defaultWorkdir":"/usr"}`))
	g.want(t, resp, body, 204, "")
	req = sh("id -un; pwd; echo $B")
	if r := runAll(t, g.process, as("", req)); r.stdout.String() != "nobody\n/usr\ndefault\n" {
		t.Errorf("defaults: %q", &r.stdout)
	}
	cwd := "~"
	req.Process.Cwd = &cwd
	if r := runAll(t, g.process, as("root", req)); r.stdout.String() != "root\n/root\ndefault\n" {
		t.Errorf("root at home: %q", &r.stdout)
	}
}

func TestStartRefuses(t *testing.T) {
	g := newGuest(t)
	missing := "/no/such/dir"
	with := func(change func(*processpb.StartRequest)) *processpb.StartRequest {
		req := sh("true")
		change(req)
		return req
	}
	for _, c := range []struct {
		user string
		req  *processpb.StartRequest
		code connect.Code
		says string
	}{
		{"ghost", sh("true"), connect.CodeUnauthenticated, "invalid username: 'ghost'"},
		{"", &processpb.StartRequest{}, connect.CodeInvalidArgument, "the command is empty"},
		{"", with(func(r *processpb.StartRequest) { r.Process.Cmd = "nope" }), connect.CodeInvalidArgument, "'nope' not found"},
		{"", with(func(r *processpb.StartRequest) { r.Process.Cwd = &missing }), connect.CodeInvalidArgument, "cwd '/no/such/dir' does not exist"},
		{"", with(func(r *processpb.StartRequest) { r.Process.Envs = map[string]string{"A=B": ""} }), connect.CodeInvalidArgument, "environment variable"},
		{"", with(func(r *processpb.StartRequest) { r.Process.Args = []string{"\x00"} }), connect.CodeInvalidArgument, "NUL"},
		{"", with(func(r *processpb.StartRequest) { r.Pty = &processpb.PTY{Size: &processpb.PTY_Size{Cols: 1 << 16}} }), connect.CodeInvalidArgument, "too large"},
	} {
		for _, client := range []processconnect.ProcessClient{g.process, g.jsonProc} {
			_, err := begin(t.Context(), client, as(c.user, c.req))
			wantConnect(t, err, c.code, c.says)
		}
	}
}

func TestTimeoutKillsAndSaysSo(t *testing.T) {
	g := newGuest(t)
	for _, client := range []processconnect.ProcessClient{g.process, g.jsonProc} {
		req := as("", sh("echo before; sleep 300 & sleep 300"))
		// Set by hand: the client would otherwise end the stream itself at that time.
		req.Header().Set("Connect-Timeout-Ms", "200")
		r, err := begin(t.Context(), client, req)
		if err != nil {
			t.Fatal(err)
		}
		err = r.finish(t)
		wantConnect(t, err, connect.CodeDeadlineExceeded, "the command did not finish within 200 ms and was killed")
		if r.end != nil || r.stdout.String() != "before\n" {
			t.Errorf("end %v, output %q", r.end, &r.stdout)
		}
	}
	req := as("", sh("sleep 0.05; echo done"))
	req.Header().Set("Connect-Timeout-Ms", "0") // as good as none
	if r := runAll(t, g.process, req); r.stdout.String() != "done\n" {
		t.Errorf("without a limit: %q", &r.stdout)
	}
	req = as("", sh("true"))
	req.Header().Set("Connect-Timeout-Ms", "soon")
	_, err := begin(t.Context(), g.process, req)
	wantConnect(t, err, connect.CodeInvalidArgument, "")
}

func TestProcessOutlivesItsClient(t *testing.T) {
	g := newGuest(t)
	for name, client := range map[string]processconnect.ProcessClient{"binary": g.process, "json": g.jsonProc} {
		file := t.TempDir() + "/file"
		ctx, cancel := context.WithCancel(t.Context())
		req := sh("while [ ! -e " + file + " ]; do echo noise; sleep 0.01; done; head -c 20000000 /dev/zero; echo end > " + file)
		r, err := begin(ctx, client, as("", req))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = r.stream.Close()
		list, err := client.List(t.Context(), as("", &processpb.ListRequest{}))
		if err != nil || len(list.Msg.GetProcesses()) != 1 || list.Msg.GetProcesses()[0].GetPid() != r.pid {
			t.Fatalf("%s: after the client went away: %v, %v", name, list, err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the process came to its own end", func() bool {
			data, err := os.ReadFile(file)
			return err == nil && string(data) == "end\n"
		})
		eventually(t, "and is gone from the list", func() bool {
			list, err := client.List(t.Context(), as("", &processpb.ListRequest{}))
			return err == nil && len(list.Msg.GetProcesses()) == 0
		})
	}
}

func TestInputAndList(t *testing.T) {
	g := newGuest(t)
	for _, client := range []processconnect.ProcessClient{g.process, g.jsonProc} {
		tag, cwd := "echo", "/tmp"
		r, err := begin(t.Context(), client, as("", &processpb.StartRequest{ // no Stdin: it has one
			Process: &processpb.ProcessConfig{Cmd: "cat", Envs: map[string]string{"K": "v"}, Cwd: &cwd}, Tag: &tag,
		}))
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.List(t.Context(), as("", &processpb.ListRequest{}))
		if err != nil || len(list.Msg.GetProcesses()) != 1 {
			t.Fatalf("list %v, %v", list, err)
		}
		info := list.Msg.GetProcesses()[0]
		if info.GetPid() != r.pid || info.GetTag() != tag || info.GetConfig().GetCmd() != "cat" || info.GetConfig().GetCwd() != cwd || info.GetConfig().GetEnvs()["K"] != "v" || len(info.GetConfig().GetEnvs()) != 1 {
			t.Errorf("listed as %v", info)
		}
		byPID := &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: r.pid}}
		byTag := &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Tag{Tag: tag}}
		input := func(sel *processpb.ProcessSelector, data string) error {
			_, err := client.SendInput(t.Context(), as("", &processpb.SendInputRequest{
				Process: sel, Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte(data)}},
			}))
			return err
		}
		for _, err := range []error{input(byPID, "one "), input(byTag, ""), input(byTag, "two")} {
			if err != nil {
				t.Error(err)
			}
		}
		_, err = client.SendInput(t.Context(), as("", &processpb.SendInputRequest{
			Process: byPID, Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte("x")}},
		}))
		wantConnect(t, err, connect.CodeInternal, "no terminal")
		for range 2 {
			if _, err := client.CloseStdin(t.Context(), as("", &processpb.CloseStdinRequest{Process: byPID})); err != nil {
				// The second may find the process gone, which is as it should be.
				wantConnect(t, err, connect.CodeNotFound, "not found")
			}
		}
		if err := r.finish(t); err != nil || r.stdout.String() != "one two" || r.end.GetExitCode() != 0 {
			t.Errorf("%v, %q, %v", err, &r.stdout, r.end)
		}
		wantConnect(t, input(byPID, "late"), connect.CodeNotFound, fmt.Sprintf("process with pid %d not found", r.pid))
		wantConnect(t, input(byTag, "late"), connect.CodeNotFound, "process with tag 'echo' not found")
		wantConnect(t, input(nil, "x"), connect.CodeInvalidArgument, "names no process")
	}
}

func TestSignals(t *testing.T) {
	g := newGuest(t)
	r, err := begin(t.Context(), g.process, as("", sh("trap 'echo caught; exit 5' TERM; echo ready; sleep 300 & wait")))
	if err != nil {
		t.Fatal(err)
	}
	sel := &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: r.pid}}
	send := func(sig processpb.Signal) error {
		_, err := g.jsonProc.SendSignal(t.Context(), as("", &processpb.SendSignalRequest{Process: sel, Signal: sig}))
		return err
	}
	wantConnect(t, send(processpb.Signal_SIGNAL_UNSPECIFIED), connect.CodeUnimplemented, "use SIGKILL or SIGTERM")
	if !r.next(t) {
		t.Fatal(r.stream.Err())
	}
	if err := send(processpb.Signal_SIGNAL_SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := r.finish(t); err != nil || r.end.GetExitCode() != 5 || r.stdout.String() != "ready\ncaught\n" {
		t.Errorf("%v, %v, %q", err, r.end, &r.stdout)
	}
	wantConnect(t, send(processpb.Signal_SIGNAL_SIGKILL), connect.CodeNotFound, "not found")
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", r.pid)); err == nil {
		t.Error("the process is still there after its end was told")
	}
}

func TestManyBytes(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 100 MB twice")
	}
	g := newGuest(t)
	const size = 100 << 20
	for name, client := range map[string]processconnect.ProcessClient{"binary": g.process, "json": g.jsonProc} {
		r, err := begin(t.Context(), client, as("", sh(fmt.Sprintf("yes abcdefg | head -c %d", size))))
		if err != nil {
			t.Fatal(err)
		}
		began, total := time.Now(), 0
		for r.next(t) {
			total += r.stdout.Len()
			if bytes.Contains(r.stdout.Bytes(), []byte("gab")) { // would be a lost newline
				t.Fatal("the output is not what was printed")
			}
			r.stdout.Reset()
		}
		if err := r.stream.Err(); err != nil || total != size || r.end.GetExitCode() != 0 {
			t.Errorf("%s: %d of %d bytes, %v, %v", name, total, size, r.end, err)
		}
		_ = r.stream.Close()
		t.Logf("%s: %.0f MB/s", name, float64(size)/time.Since(began).Seconds()/1e6)
	}
}

func TestKeepAlive(t *testing.T) {
	g := newGuest(t)
	req := as("", &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "cat"}})
	req.Header().Set("Keepalive-Ping-Interval", "1")
	r, err := begin(t.Context(), g.process, req)
	if err != nil {
		t.Fatal(err)
	}
	if !r.next(t) || r.keepAlives != 1 {
		t.Errorf("no keep-alive came: %v", r.stream.Err())
	}
	_, err = g.process.CloseStdin(t.Context(), as("", &processpb.CloseStdinRequest{
		Process: &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: r.pid}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.finish(t); err != nil || r.end == nil {
		t.Errorf("%v, %v", err, r.end)
	}
}
