package rpc

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

func byPID(pid uint32) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Tag{Tag: tag}}
}

// attach connects to a process and takes the first event.
func attach(ctx context.Context, client processconnect.ProcessClient, sel *processpb.ProcessSelector, headers ...string) (*run, error) {
	req := connect.NewRequest(&processpb.ConnectRequest{Process: sel})
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header().Set(headers[i], headers[i+1])
	}
	stream, err := client.Connect(ctx, req)
	if err != nil {
		return nil, err
	}
	return first(connectStream{stream})
}

// connectStream is a stream of Connect that looks like one of Start.
type connectStream struct {
	*connect.ServerStreamForClient[processpb.ConnectResponse]
}

func (s connectStream) event() *processpb.ProcessEvent { return s.Msg().GetEvent() }

func input(t *testing.T, client processconnect.ProcessClient, sel *processpb.ProcessSelector, text string) {
	t.Helper()
	_, err := client.SendInput(t.Context(), as("", &processpb.SendInputRequest{
		Process: sel, Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte(text)}},
	}))
	if err != nil {
		t.Fatal(err)
	}
}

func TestConnectByTagFromAnotherClient(t *testing.T) {
	g := newGuest(t)
	other := processconnect.NewProcessClient(g.http, g.url, connect.WithProtoJSON(), connect.WithSendGzip())
	tag := "my server/1 ü"
	req := &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "while read line; do echo $line; done; exit 4"}},
		Tag:     &tag,
	}
	ctx, cancel := context.WithCancel(t.Context())
	began, err := begin(ctx, g.process, as("", req))
	if err != nil {
		t.Fatal(err)
	}
	input(t, g.process, byTag(tag), "one\n")
	for began.stdout.String() != "one\n" && began.next(t) {
	}
	cancel() // the client that started it goes away
	_ = began.stream.Close()

	second, err := attach(within(t), other, byTag(tag))
	if err != nil {
		t.Fatal(err)
	}
	third, err := attach(within(t), g.process, byPID(began.pid), "Wrenn-Replay", "true")
	if err != nil {
		t.Fatal(err)
	}
	if second.pid != began.pid || third.pid != began.pid {
		t.Errorf("pids %d and %d, want %d", second.pid, third.pid, began.pid)
	}
	input(t, other, byTag(tag), "two\n")
	if _, err := other.CloseStdin(t.Context(), as("", &processpb.CloseStdinRequest{Process: byTag(tag)})); err != nil {
		t.Fatal(err)
	}
	for want, r := range map[string]*run{"two\n": second, "one\ntwo\n": third} {
		if err := r.finish(t); err != nil || r.stdout.String() != want || r.end.GetExitCode() != 4 {
			t.Errorf("%q, %v, %v; want %q", &r.stdout, r.end, err, want)
		}
	}
}

func TestLateConnectHearsOfTheEnd(t *testing.T) {
	g := newGuest(t)
	tag := "gone"
	req := sh("echo said; echo wrong >&2; exit 9")
	req.Tag = &tag
	done := runAll(t, g.process, as("", req))
	for _, client := range []processconnect.ProcessClient{g.process, g.jsonProc} {
		for _, sel := range []*processpb.ProcessSelector{byPID(done.pid), byTag(tag)} {
			late, err := attach(within(t), client, sel)
			if err != nil {
				t.Fatal(err)
			}
			if err := late.finish(t); err != nil || late.pid != done.pid || late.end.GetExitCode() != 9 || late.stdout.Len() > 0 {
				t.Errorf("late: %v, %v, %q", err, late.end, &late.stdout)
			}
			late, err = attach(within(t), client, sel, "Wrenn-Replay", "true")
			if err != nil {
				t.Fatal(err)
			}
			if err := late.finish(t); err != nil || late.end.GetExitCode() != 9 || late.stdout.String() != "said\n" || late.stderr.String() != "wrong\n" {
				t.Errorf("late with replay: %v, %v, %q, %q", err, late.end, &late.stdout, &late.stderr)
			}
		}
	}
	list, err := g.process.List(t.Context(), as("", &processpb.ListRequest{}))
	if err != nil || len(list.Msg.GetProcesses()) > 0 {
		t.Errorf("an ended process is listed: %v, %v", list, err)
	}
	_, err = g.process.SendSignal(t.Context(), as("", &processpb.SendSignalRequest{Process: byPID(done.pid), Signal: processpb.Signal_SIGNAL_SIGKILL}))
	wantConnect(t, err, connect.CodeNotFound, fmt.Sprintf("process with pid %d not found", done.pid))
	_, err = attach(within(t), g.process, byPID(1<<31))
	wantConnect(t, err, connect.CodeNotFound, "process with pid 2147483648 not found")
	_, err = attach(within(t), g.process, byTag("never"))
	wantConnect(t, err, connect.CodeNotFound, "process with tag 'never' not found")
	_, err = attach(within(t), g.process, nil)
	wantConnect(t, err, connect.CodeInvalidArgument, "names no process")

	killed := as("", sh("sleep 300"))
	killed.Header().Set("Connect-Timeout-Ms", "100")
	r, err := begin(within(t), g.process, killed)
	if err != nil {
		t.Fatal(err)
	}
	wantConnect(t, r.finish(t), connect.CodeDeadlineExceeded, "within 100 ms")
	if r, err = attach(within(t), g.process, byPID(r.pid)); err != nil {
		t.Fatal(err)
	}
	wantConnect(t, r.finish(t), connect.CodeDeadlineExceeded, "within 100 ms")
}

func TestTimeoutOfAConnectionIsNotTheProcesss(t *testing.T) {
	g := newGuest(t)
	r, err := begin(within(t), g.process, as("", sh("sleep 300")))
	if err != nil {
		t.Fatal(err)
	}
	defer r.stream.Close()
	again, err := attach(within(t), g.jsonProc, byPID(r.pid), "Connect-Timeout-Ms", "100")
	if err != nil {
		t.Fatal(err)
	}
	wantConnect(t, again.finish(t), connect.CodeDeadlineExceeded, "the process goes on")
	if list, err := g.process.List(t.Context(), as("", &processpb.ListRequest{})); err != nil || len(list.Msg.GetProcesses()) != 1 {
		t.Errorf("it did not go on: %v, %v", list, err)
	}
}

// follow reads numbered lines until it has read some, and checks that none is missing or
// comes twice. A replay may begin in the middle of one.
func (r *run) follow(t *testing.T, lines int) error {
	var rest bytes.Buffer
	last, partial := -1, true
	for got := 0; got < lines; {
		r.stdout.Reset()
		if !r.next(t) {
			return fmt.Errorf("the stream ended after %d lines: %w", got, r.stream.Err())
		}
		rest.Write(r.stdout.Bytes())
		for {
			line, ok := takeLine(&rest)
			if !ok {
				break
			}
			if got++; partial {
				partial = false
				continue
			}
			n, err := strconv.Atoi(line)
			if err != nil || last >= 0 && n != last+1 {
				return fmt.Errorf("line %q after %d", line, last)
			}
			last = n
		}
	}
	return nil
}

func takeLine(b *bytes.Buffer) (string, bool) {
	i := bytes.IndexByte(b.Bytes(), '\n')
	if i < 0 {
		return "", false
	}
	return string(bytes.TrimSuffix(b.Next(i + 1)[:i], []byte("\r"))), true
}

func TestReplayIsExactWhileTheProcessPrints(t *testing.T) {
	g := newGuest(t)
	tag := "printer"
	req := as("", sh("seq 1 1000000000"))
	req.Msg.Tag = &tag
	r, err := begin(within(t), g.process, req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, err := g.process.SendSignal(t.Context(), as("", &processpb.SendSignalRequest{Process: byTag(tag), Signal: processpb.Signal_SIGNAL_SIGKILL}))
		if err != nil {
			t.Error(err)
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // the first client reads on all the time
		defer r.stream.Close()
		if err := r.follow(t, 1_000_000); err != nil {
			t.Error(err)
		}
	})
	for i := range 6 {
		client := g.process
		if i%2 == 1 {
			client = g.jsonProc
		}
		wg.Go(func() {
			for range 5 {
				again, err := attach(within(t), client, byTag(tag), "Wrenn-Replay", "true")
				if err != nil {
					t.Error(err)
					return
				}
				// More than is replayed, so that the seam is in it.
				if err := again.follow(t, 60_000); err != nil {
					t.Error(err)
				}
				_ = again.stream.Close()
			}
		})
	}
}

// A client whose connection breaks again and again gets all of the output, and none of it
// twice, however its two streams come.
func TestGoingOnWhereTheStreamBroke(t *testing.T) {
	g := newGuest(t)
	tag := "printer"
	const lines = 20_000
	req := as("", sh(fmt.Sprintf("read go; seq 1 %d & seq 1 %[1]d >&2; wait; exit 7", lines)))
	req.Msg.Tag, req.Msg.Stdin = &tag, nil
	if _, err := begin(within(t), g.process, req); err != nil {
		t.Fatal(err)
	}
	input(t, g.process, byTag(tag), "go\n")
	var stdout, stderr bytes.Buffer
	for round, over := 0, false; !over; round++ {
		client := g.process
		if round%2 == 1 {
			client = g.jsonProc
		}
		at := fmt.Sprintf("%d,%d", stdout.Len(), stderr.Len())
		r, err := attach(within(t), client, byTag(tag), "Wrenn-Replay-From", at)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.stream.ResponseHeader().Get("Wrenn-Output-Offset"); got != at {
			t.Fatalf("from %s on it begins at %s", at, got)
		}
		for range 3 {
			if !r.next(t) {
				break
			}
		}
		stdout.Write(r.stdout.Bytes())
		stderr.Write(r.stderr.Bytes())
		if over = r.end != nil; over && r.end.GetExitCode() != 7 {
			t.Errorf("it ended with %v", r.end)
		}
		_ = r.stream.Close()
	}
	for name, out := range map[string]*bytes.Buffer{"stdout": &stdout, "stderr": &stderr} {
		for n := range lines {
			if line, _ := takeLine(out); line != strconv.Itoa(n+1) {
				t.Fatalf("%s: line %d is %q", name, n+1, line)
			}
		}
	}
	for _, wrong := range []string{"1", "1,", ",1", "-1,0", "1,2,3", "a,b", "9223372036854775808,0"} {
		_, err := attach(within(t), g.process, byTag(tag), "Wrenn-Replay-From", wrong)
		wantConnect(t, err, connect.CodeInvalidArgument, "Wrenn-Replay-From")
	}
	late, err := attach(within(t), g.process, byTag(tag), "Wrenn-Replay-From", "9223372036854775807,0")
	if err != nil {
		t.Fatal(err)
	}
	if err := late.finish(t); err != nil || late.stdout.Len() > 0 || late.stderr.Len() == 0 {
		t.Errorf("beyond the end: %v, %d and %d bytes", err, late.stdout.Len(), late.stderr.Len())
	}
}

func TestHundredCommandsPrintAtOnce(t *testing.T) {
	g := newGuest(t)
	const lines = 20_000
	var wg sync.WaitGroup
	for i := range 100 {
		client := g.process
		if i%2 == 1 {
			client = g.jsonProc
		}
		wg.Go(func() {
			r, err := begin(within(t), client, as("", sh(fmt.Sprintf("seq 1 %d; echo over >&2; exit %d", lines, i))))
			if err != nil {
				t.Error(err)
				return
			}
			if err := r.finish(t); err != nil || r.end.GetExitCode() != int32(i) || r.stderr.String() != "over\n" {
				t.Errorf("command %d: %v, %v, %q", i, err, r.end, &r.stderr)
			}
			if got := strings.Count(r.stdout.String(), "\n"); got != lines || !strings.HasSuffix(r.stdout.String(), fmt.Sprintf("\n%d\n", lines)) {
				t.Errorf("command %d: %d lines of %d", i, got, lines)
			}
		})
	}
	wg.Wait()
}

func TestStreamInput(t *testing.T) {
	g := newGuest(t)
	for _, client := range []processconnect.ProcessClient{g.process, g.jsonProc} {
		r, err := begin(within(t), client, as("", &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "cat"}}))
		if err != nil {
			t.Fatal(err)
		}
		naming := &processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Start{Start: &processpb.StreamInputRequest_StartEvent{Process: byPID(r.pid)}}}
		alive := &processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Keepalive{Keepalive: &processpb.StreamInputRequest_KeepAlive{}}}
		data := func(text string) *processpb.StreamInputRequest {
			return &processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Data{Data: &processpb.StreamInputRequest_DataEvent{
				Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte(text)}},
			}}}
		}
		send := func(messages ...*processpb.StreamInputRequest) error {
			stream := client.StreamInput(t.Context())
			for _, msg := range messages {
				if stream.Send(msg) != nil {
					break // the answer says why
				}
			}
			_, err := stream.CloseAndReceive()
			return err
		}
		if err := send(naming, data("one "), alive, data("two ")); err != nil {
			t.Fatal(err)
		}
		if err := send(naming, data("three")); err != nil { // the end of a stream does not end the input
			t.Fatal(err)
		}
		wantConnect(t, send(data("x")), connect.CodeInvalidArgument, "first message")
		wantConnect(t, send(naming, naming), connect.CodeInvalidArgument, "twice")
		wantConnect(t, send(naming, &processpb.StreamInputRequest{}), connect.CodeInvalidArgument, "no event")
		if _, err := client.CloseStdin(t.Context(), as("", &processpb.CloseStdinRequest{Process: byPID(r.pid)})); err != nil {
			t.Fatal(err)
		}
		if err := r.finish(t); err != nil || r.stdout.String() != "one two three" {
			t.Errorf("%v, %q", err, &r.stdout)
		}
		wantConnect(t, send(naming), connect.CodeNotFound, "not found")
	}
}

func TestExitCodesAreNeverInvented(t *testing.T) {
	g := newGuest(t)
	r, err := begin(within(t), g.process, as("", sh("exec sleep 300")))
	if err != nil {
		t.Fatal(err)
	}
	// Killed from outside, while others watch: everybody hears the same.
	watcher, err := attach(within(t), g.jsonProc, byPID(r.pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(int(r.pid), unix.SIGSEGV); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*run{r, watcher} {
		if err := r.finish(t); err != nil || r.end.GetExitCode() != -1 || r.end.GetExited() || !strings.HasPrefix(r.end.GetStatus(), "signal: segmentation fault") {
			t.Errorf("%v, %v", err, r.end)
		}
	}
}

// FuzzSelector checks that whatever names a process gets one of the documented answers.
func FuzzSelector(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"process":{}}`, `{"process":{"pid":1}}`, `{"process":{"pid":4294967295}}`, `{"process":{"pid":-1}}`,
		`{"process":{"tag":""}}`, `{"process":{"tag":"\u0000"}}`, `{"process":{"tag":"../../proc/1"}}`,
		`{"process":{"pid":"7"}}`, `{"process":{"pid":1,"tag":"x"}}`, `{"process":null,"signal":"SIGNAL_SIGKILL"}`, `[`, `nul`,
	} {
		f.Add(seed)
	}
	g := newGuest(f)
	procedures := []string{"SendSignal", "SendInput", "CloseStdin", "Update"}
	f.Fuzz(func(t *testing.T, body string) {
		for _, procedure := range procedures {
			resp, answer := g.do(t, "POST", "/process.Process/"+procedure, strings.NewReader(body), "Content-Type", "application/json")
			if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s answers %d %s to %q", procedure, resp.StatusCode, answer, body)
			}
		}
	})
}
