package hostclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// fakeHost is a host agent with the calls that a test fills in.
type fakeHost struct {
	hostv1connect.UnimplementedHostServiceHandler
	create func(*hostv1.CreateSandboxRequest) (*hostv1.Sandbox, error)
	watch  func(context.Context, *connect.ServerStream[hostv1.WatchSandboxesResponse]) error
	start  func(context.Context, *hostv1.StartProcessRequest, *connect.ServerStream[hostv1.ProcessEvent]) error
	// connect is start for a process that runs.
	connect func(*hostv1.ConnectProcessRequest, *connect.ServerStream[hostv1.ProcessEvent]) error
	signal  func(*hostv1.SignalProcessRequest) error
	input   func(*hostv1.SendInputRequest)
	resize  func(*hostv1.ResizeTerminalRequest)
	files   http.HandlerFunc
}

func (f *fakeHost) CreateSandbox(_ context.Context, req *connect.Request[hostv1.CreateSandboxRequest]) (*connect.Response[hostv1.CreateSandboxResponse], error) {
	sb, err := f.create(req.Msg)
	return connect.NewResponse(&hostv1.CreateSandboxResponse{Sandbox: sb}), err
}

func (f *fakeHost) WatchSandboxes(ctx context.Context, _ *connect.Request[hostv1.WatchSandboxesRequest], s *connect.ServerStream[hostv1.WatchSandboxesResponse]) error {
	return f.watch(ctx, s)
}

func (f *fakeHost) StartProcess(ctx context.Context, req *connect.Request[hostv1.StartProcessRequest], s *connect.ServerStream[hostv1.ProcessEvent]) error {
	return f.start(ctx, req.Msg, s)
}

func (f *fakeHost) ConnectProcess(_ context.Context, req *connect.Request[hostv1.ConnectProcessRequest], s *connect.ServerStream[hostv1.ProcessEvent]) error {
	return f.connect(req.Msg, s)
}

func (f *fakeHost) SendInput(_ context.Context, req *connect.Request[hostv1.SendInputRequest]) (*connect.Response[hostv1.SendInputResponse], error) {
	f.input(req.Msg)
	return connect.NewResponse(&hostv1.SendInputResponse{}), nil
}

func (f *fakeHost) ResizeTerminal(_ context.Context, req *connect.Request[hostv1.ResizeTerminalRequest]) (*connect.Response[hostv1.ResizeTerminalResponse], error) {
	f.resize(req.Msg)
	return connect.NewResponse(&hostv1.ResizeTerminalResponse{}), nil
}

func (f *fakeHost) SignalProcess(_ context.Context, req *connect.Request[hostv1.SignalProcessRequest]) (*connect.Response[hostv1.SignalProcessResponse], error) {
	return connect.NewResponse(&hostv1.SignalProcessResponse{}), f.signal(req.Msg)
}

// agent is a fake of a host agent.
type agent interface {
	hostv1connect.HostServiceHandler
	file(w http.ResponseWriter, r *http.Request)
}

func (f *fakeHost) file(w http.ResponseWriter, r *http.Request) { f.files(w, r) }

// serve runs the fake on a Unix socket as a host agent does.
func serve(t testing.TB, f agent) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "host.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(hostv1connect.NewHostServiceHandler(f, connect.WithInterceptors(fault.Interceptor())))
	mux.HandleFunc(hostv1.FilesPath, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("a file came over %s", r.Proto)
		}
		f.file(w, r)
	})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	c := Dial(socket)
	t.Cleanup(func() { c.Close(); _ = srv.Close() })
	return c
}

func TestCreateTranslates(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC)
	var got *hostv1.CreateSandboxRequest
	c := serve(t, &fakeHost{create: func(req *hostv1.CreateSandboxRequest) (*hostv1.Sandbox, error) {
		got = req
		return &hostv1.Sandbox{
			Id: req.GetId(), Status: hostv1.SandboxStatus_SANDBOX_STATUS_RUNNING, Runtime: "gvisor",
			HostIp: "10.0.0.1", GuestIp: "10.0.0.2", StartedAt: timestamppb.New(at),
		}, nil
	}})
	sb, err := c.Lifecycle.Create(t.Context(), sandbox.Spec{
		ID: "sb1", Template: "base", Resources: sandbox.Resources{VCPUs: 1, MemoryMB: 2, DiskMB: 3},
		Env: map[string]string{"A": "1"}, User: "u",
	})
	want := sandbox.HostSandbox{ID: "sb1", Status: sandbox.Running, Runtime: "gvisor", HostIP: "10.0.0.1", GuestIP: "10.0.0.2", StartedAt: at}
	if err != nil || sb != want {
		t.Fatalf("%+v %v", sb, err)
	}
	r := got.GetResources()
	if got.GetTemplate() != "base" || got.GetDefaultUser() != "u" || !maps.Equal(got.GetEnv(), map[string]string{"A": "1"}) ||
		r.GetVcpus() != 1 || r.GetMemoryMb() != 2 || r.GetDiskMb() != 3 {
		t.Errorf("the host was asked for %v", got)
	}
}

func TestErrorsKeepTheirMeaning(t *testing.T) {
	c := serve(t, &fakeHost{create: func(*hostv1.CreateSandboxRequest) (*hostv1.Sandbox, error) {
		return nil, fault.New(fault.NoSpace, "the host's disk is full")
	}})
	_, err := c.Lifecycle.Create(t.Context(), sandbox.Spec{})
	if !fault.Is(err, fault.NoSpace) || fault.MessageOf(err) != "the host's disk is full" {
		t.Errorf("the host's own error came as %s %q", fault.CodeOf(err), fault.MessageOf(err))
	}

	gone := Dial(filepath.Join(t.TempDir(), "none.sock"))
	_, err = gone.Lifecycle.Describe(t.Context())
	if !fault.Is(err, fault.HostUnavailable) || strings.Contains(fault.MessageOf(err), "sock") {
		t.Errorf("no host: %s %q", fault.CodeOf(err), fault.MessageOf(err))
	}
	err = gone.Lifecycle.Watch(t.Context(), func(sandbox.HostEvent) error { return nil })
	if !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("no host to watch: %v", err)
	}
	_, _, err = gone.Processes.Start(t.Context(), "sb1", sandbox.Command{})
	if !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("no host to start on: %v", err)
	}
	_, err = gone.Files.Read(t.Context(), "sb1", "", "/x")
	if !fault.Is(err, fault.HostUnavailable) {
		t.Errorf("no host to read from: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := gone.Lifecycle.Describe(ctx); !fault.Is(err, fault.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestWatch(t *testing.T) {
	stopped := make(chan struct{})
	c := serve(t, &fakeHost{watch: func(ctx context.Context, s *connect.ServerStream[hostv1.WatchSandboxesResponse]) error {
		defer close(stopped)
		sb := &hostv1.Sandbox{Id: "sb1", Status: hostv1.SandboxStatus_SANDBOX_STATUS_ERROR, Reason: "boom"}
		for _, ev := range []*hostv1.WatchSandboxesResponse{
			{Event: &hostv1.WatchSandboxesResponse_Sandbox{Sandbox: sb}},
			{Event: &hostv1.WatchSandboxesResponse_Synced_{Synced: &hostv1.WatchSandboxesResponse_Synced{}}},
			{},
			{Event: &hostv1.WatchSandboxesResponse_Sandbox{Sandbox: sb}},
		} {
			if err := s.Send(ev); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	var got []sandbox.HostEvent
	enough := errors.New("enough")
	err := c.Lifecycle.Watch(t.Context(), func(ev sandbox.HostEvent) error {
		if got = append(got, ev); len(got) == 3 {
			return enough
		}
		return nil
	})
	boom := sandbox.HostEvent{Sandbox: sandbox.HostSandbox{ID: "sb1", Status: sandbox.Error, Reason: "boom"}}
	if diff := cmp.Diff([]sandbox.HostEvent{boom, {Synced: true}, boom}, got); diff != "" || !errors.Is(err, enough) {
		t.Errorf("%v %s", err, diff)
	}
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Error("the host's stream goes on though nobody listens")
	}
}

func TestProcessEvents(t *testing.T) {
	send := func(s *connect.ServerStream[hostv1.ProcessEvent], events ...*hostv1.ProcessEvent) error {
		for _, ev := range events {
			if err := s.Send(ev); err != nil {
				return err
			}
		}
		return nil
	}
	start := &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Start_{Start: &hostv1.ProcessEvent_Start{Pid: 7}}}
	out := &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Stdout{Stdout: []byte("o")}}
	errs := &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Stderr{Stderr: []byte("e")}}
	end := &hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_End_{
		End: &hostv1.ProcessEvent_End{ExitCode: -1, Signal: "SIGKILL", TimedOut: true},
	}}
	var asked *hostv1.StartProcessRequest
	var signaled *hostv1.SignalProcessRequest
	c := serve(t, &fakeHost{
		signal: func(req *hostv1.SignalProcessRequest) error { signaled = req; return nil },
		start: func(_ context.Context, req *hostv1.StartProcessRequest, s *connect.ServerStream[hostv1.ProcessEvent]) error {
			asked = req
			switch req.GetCmd() {
			case "missing":
				return fault.New(fault.InvalidRequest, "no such command")
			case "cut":
				return send(s, start, out)
			}
			return send(s, start, out, errs, end)
		},
	})
	started, events, err := c.Processes.Start(t.Context(), "sb1", sandbox.Command{Cmd: "x", Args: []string{"a"}, Timeout: 1500 * time.Millisecond, Stdin: true, Tag: "t"})
	if err != nil || started.PID != 7 {
		t.Fatal(started, err)
	}
	if asked.GetTimeoutMs() != 1500 || !asked.GetStdin() || asked.GetTag() != "t" || asked.GetArgs()[0] != "a" {
		t.Errorf("asked for %v", asked)
	}
	var got []sandbox.Event
	for {
		ev, err := events.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev)
	}
	want := []sandbox.Event{
		{Kind: sandbox.Stdout, Data: []byte("o")}, {Kind: sandbox.Stderr, Data: []byte("e")},
		{Kind: sandbox.Exited, Exit: sandbox.Exit{Code: -1, Signal: "SIGKILL", TimedOut: true}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, _, err := c.Processes.Start(t.Context(), "sb1", sandbox.Command{Cmd: "missing"}); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("a command that cannot start: %v", err)
	}
	_, events, err = c.Processes.Start(t.Context(), "sb1", sandbox.Command{Cmd: "cut"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := events.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("a stream without an end: %v", err)
	}
	if err := c.Processes.Signal(t.Context(), "sb1", sandbox.Selector{Tag: "t"}, sandbox.SIGTERM); err != nil ||
		signaled.GetSignal() != hostv1.Signal_SIGNAL_SIGTERM || signaled.GetProcess().GetTag() != "t" {
		t.Errorf("signal: %v %v", err, signaled)
	}
}

func TestTerminals(t *testing.T) {
	var asked *hostv1.StartProcessRequest
	var followed *hostv1.ConnectProcessRequest
	var inputs []*hostv1.SendInputRequest
	var resized *hostv1.ResizeTerminalRequest
	piece := bytes.Repeat([]byte("x"), frameSize+1) // more than the host sends at once
	play := func(s *connect.ServerStream[hostv1.ProcessEvent], replay uint64) error {
		return errors.Join(
			s.Send(&hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Start_{Start: &hostv1.ProcessEvent_Start{Pid: 7, ReplayBytes: replay, Offset: followed.GetFrom()}}}),
			s.Send(&hostv1.ProcessEvent{Event: &hostv1.ProcessEvent_Terminal{Terminal: piece}}))
	}
	c := serve(t, &fakeHost{
		start: func(_ context.Context, req *hostv1.StartProcessRequest, s *connect.ServerStream[hostv1.ProcessEvent]) error {
			asked = req
			return play(s, 0)
		},
		connect: func(req *hostv1.ConnectProcessRequest, s *connect.ServerStream[hostv1.ProcessEvent]) error {
			if followed = req; req.GetProcess().GetTag() != "t" {
				return fault.New(fault.NotFound, "no such process")
			}
			return play(s, 9)
		},
		input:  func(req *hostv1.SendInputRequest) { inputs = append(inputs, req) },
		resize: func(req *hostv1.ResizeTerminalRequest) { resized = req },
	})
	p, size := c.Processes, sandbox.TerminalSize{Cols: 100, Rows: 30}
	started, events, err := p.Start(t.Context(), "sb1", sandbox.Command{Terminal: &size})
	if err != nil || started != (sandbox.Started{PID: 7}) || asked.GetTerminal().GetCols() != 100 || asked.GetTerminal().GetRows() != 30 {
		t.Fatalf("%+v, %v, asked for %v", started, err, asked)
	}
	if ev, err := events.Next(); err != nil || ev.Kind != sandbox.Terminal || !bytes.Equal(ev.Data, piece) {
		t.Errorf("kind %d, %d bytes, %v", ev.Kind, len(ev.Data), err)
	}
	started, events, err = p.Connect(t.Context(), "sb1", sandbox.Follow{Process: sandbox.Selector{Tag: "t"}, Replay: true})
	if err != nil || started != (sandbox.Started{PID: 7, ReplayBytes: 9}) || !followed.GetReplay() || followed.GetSandboxId() != "sb1" {
		t.Fatalf("%+v, %v, asked for %v", started, err, followed)
	}
	if ev, err := events.Next(); err != nil || ev.Kind != sandbox.Terminal {
		t.Errorf("%d, %v", ev.Kind, err)
	}
	from := sandbox.Offset{Stdout: 5, Stderr: 6}
	started, _, err = p.Connect(t.Context(), "sb1", sandbox.Follow{Process: sandbox.Selector{Tag: "t"}, From: &from})
	if err != nil || started.Offset == nil || *started.Offset != from || followed.GetReplay() {
		t.Errorf("from %+v on: %+v, %v", from, started.Offset, err)
	}
	if _, _, err := p.Connect(t.Context(), "sb1", sandbox.Follow{Process: sandbox.Selector{PID: 3}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a process that is not there: %v", err)
	}
	for _, in := range []sandbox.Input{{Data: []byte("in")}, {Terminal: true, Data: []byte("key")}} {
		if err := p.SendInput(t.Context(), "sb1", sandbox.Selector{PID: 7}, in); err != nil {
			t.Error(err)
		}
	}
	if len(inputs) != 2 || string(inputs[0].GetStdin()) != "in" || string(inputs[1].GetTerminal()) != "key" || inputs[1].GetProcess().GetPid() != 7 {
		t.Errorf("input %v", inputs)
	}
	if err := p.Resize(t.Context(), "sb1", sandbox.Selector{Tag: "t"}, size); err != nil || resized.GetSize().GetRows() != 30 || resized.GetProcess().GetTag() != "t" {
		t.Errorf("%v, resized %v", err, resized)
	}
}

func TestFilesStream(t *testing.T) {
	var stored []byte
	c := serve(t, &fakeHost{files: func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get(hostv1.SandboxParam) != "sb1" || q.Get(hostv1.PathParam) != "/a b&c" || q.Get(hostv1.UserParam) != "u" {
			t.Errorf("asked for %v", q)
		}
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Length", strconv.Itoa(len(stored)))
			_, _ = w.Write(stored)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // cut off: nothing is stored
		}
		stored = body
		w.WriteHeader(http.StatusNoContent)
	}})
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*fileBuffer/16+5)
	for _, size := range []int64{-1, int64(len(data))} {
		stored = nil
		// Small reads, as a form's reader gives them.
		if err := c.Files.Write(t.Context(), "sb1", "u", "/a b&c", iotest.OneByteReader(bytes.NewReader(data[:10])), -1); err != nil || len(stored) != 10 {
			t.Fatalf("%d bytes, %v", len(stored), err)
		}
		if err := c.Files.Write(t.Context(), "sb1", "u", "/a b&c", bytes.NewReader(data), size); err != nil || !bytes.Equal(stored, data) {
			t.Fatalf("size %d: %d bytes, %v", size, len(stored), err)
		}
	}
	got, err := c.Files.Read(t.Context(), "sb1", "u", "/a b&c")
	if err != nil || got.Size != int64(len(data)) {
		t.Fatal(got.Size, err)
	}
	defer got.Close()
	if back, err := io.ReadAll(got); err != nil || !bytes.Equal(back, data) {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	if err := c.Files.Write(t.Context(), "sb1", "u", "/a b&c", strings.NewReader(""), 0); err != nil || len(stored) != 0 {
		t.Errorf("an empty file: %d bytes, %v", len(stored), err)
	}
}

func TestWriteThatIsCutOffStoresNothing(t *testing.T) {
	stored := make(chan bool, 1)
	c := serve(t, &fakeHost{files: func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		stored <- err == nil
	}})
	cut := fault.New(fault.InvalidRequest, "the form ends in the middle")
	for name, broken := range map[string]error{"an error of the reader": cut, "an unexpected end": io.ErrUnexpectedEOF} {
		r := io.MultiReader(strings.NewReader(strings.Repeat("x", 3*fileBuffer/2)), iotest.ErrReader(broken))
		if err := c.Files.Write(t.Context(), "sb1", "", "/x", r, -1); !errors.Is(err, broken) {
			t.Errorf("%s came as %v", name, err)
		}
		if <-stored {
			t.Errorf("%s: the host took a part for the whole", name)
		}
	}
}

func TestWriteRefusedBeforeTheBody(t *testing.T) {
	c := serve(t, &fakeHost{files: func(w http.ResponseWriter, _ *http.Request) {
		fault.WriteHTTP(w, fault.New(fault.NotFound, "there is no sandbox"))
	}})
	read := false
	r := readerFunc(func(p []byte) (int, error) { read = true; return len(p), nil })
	if err := c.Files.Write(t.Context(), "sb1", "", "/x", r, -1); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	if read {
		t.Error("the body was read though nobody wanted it")
	}
}

// A host that stops to read answers and closes; what it said counts, not that the transfer
// broke.
func TestWriteRefusedInTheMiddle(t *testing.T) {
	c := serve(t, &fakeHost{files: func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.CopyN(io.Discard, r.Body, fileBuffer); err != nil {
			t.Error(err)
		}
		_ = r.Body.Close() // as a transport does that could not pass it on
		fault.WriteHTTP(w, fault.New(fault.InvalidState, "the sandbox was paused"))
	}})
	const times = 50 // either may come first
	for range times {
		if err := c.Files.Write(t.Context(), "sb1", "", "/x", io.LimitReader(zeros{}, 64*fileBuffer), 64*fileBuffer); !fault.Is(err, fault.InvalidState) {
			t.Fatal(err)
		}
	}
}

// A host that is gone in the middle of a transfer is waited for by nobody.
func TestWriteToAHostThatIsGone(t *testing.T) {
	c := serve(t, &fakeHost{files: func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyN(io.Discard, r.Body, fileBuffer)
		panic(http.ErrAbortHandler)
	}})
	began := time.Now()
	if err := c.Files.Write(t.Context(), "sb1", "", "/x", zeros{}, -1); !fault.Is(err, fault.HostUnavailable) {
		t.Error(err)
	}
	if took := time.Since(began); took > answerWait/2 {
		t.Errorf("it took %v", took)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func BenchmarkWrite(b *testing.B) {
	const size = 256 << 20
	c := serve(b, &fakeHost{files: func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, fileBuffer))
		w.WriteHeader(http.StatusNoContent)
	}})
	for name, length := range map[string]int64{"unknown size": -1, "known size": size} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if err := c.Files.Write(b.Context(), "sb1", "", "/x", io.LimitReader(zeros{}, size), length); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
