package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/metering"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
	"github.com/wrenn-sandbox/wrenn/internal/testenv"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

// fakeSandboxes is a lifecycle of function fields; those that a test leaves out must not
// be called.
type fakeSandboxes struct {
	create  func(sandbox.CreateRequest) (sandbox.Sandbox, error)
	pause   func(string) (sandbox.Sandbox, error)
	resume  func(string, time.Duration) (sandbox.Sandbox, error)
	get     func(string) (sandbox.Sandbox, error)
	destroy func(string) error
	watch   func(ctx context.Context, sandbox func(sandbox.Sandbox) error, synced func() error) error
	guest   func(string) (*guestclient.Client, error)
}

func (f fakeSandboxes) Create(_ context.Context, r sandbox.CreateRequest) (sandbox.Sandbox, error) {
	return f.create(r)
}
func (f fakeSandboxes) Pause(_ context.Context, id string) (sandbox.Sandbox, error) {
	return f.pause(id)
}
func (f fakeSandboxes) Resume(_ context.Context, id string, wait time.Duration) (sandbox.Sandbox, error) {
	return f.resume(id, wait)
}
func (f fakeSandboxes) Get(id string) (sandbox.Sandbox, error)       { return f.get(id) }
func (f fakeSandboxes) Destroy(_ context.Context, id string) error   { return f.destroy(id) }
func (f fakeSandboxes) Guest(id string) (*guestclient.Client, error) { return f.guest(id) }
func (f fakeSandboxes) Watch(ctx context.Context, sandbox func(sandbox.Sandbox) error, synced func() error) error {
	return f.watch(ctx, sandbox, synced)
}

// fakeSnapshots is for snapshots what fakeSandboxes is for sandboxes.
type fakeSnapshots struct {
	fork   func(string, []string) ([]sandbox.Sandbox, error)
	create func(sandboxID, id string) (snapshot.Snapshot, error)
	list   []snapshot.Snapshot
	delete func(string) error
	warm   func([]sandbox.Warm) error
}

func (f fakeSnapshots) Fork(_ context.Context, id string, copies []string) ([]sandbox.Sandbox, error) {
	return f.fork(id, copies)
}
func (f fakeSnapshots) Create(_ context.Context, sandboxID, id string) (snapshot.Snapshot, error) {
	return f.create(sandboxID, id)
}
func (f fakeSnapshots) List() []snapshot.Snapshot                           { return f.list }
func (f fakeSnapshots) Delete(_ context.Context, id string) error           { return f.delete(id) }
func (f fakeSnapshots) SetWarm(_ context.Context, all []sandbox.Warm) error { return f.warm(all) }

type fakeHost struct{}

func (fakeHost) Metrics(id string, d time.Duration) ([]metering.Point, error) {
	if id != "sba" {
		return nil, fault.New(fault.NotFound, "sandbox %q does not exist", id)
	}
	return []metering.Point{{Time: time.Unix(int64(d.Seconds()), 0), CPUPct: 12.5, MemoryBytes: 3, DiskBytes: 4, Processes: 5, SentBytes: 6, ReceivedBytes: 7,
		SentRate: 8, ReceivedRate: 9, Limits: metering.Limits{CPUPct: 100, MemoryBytes: 30, DiskBytes: 40, Processes: 50, NetworkBitsPerSecond: 80}}}, nil
}

func (fakeHost) Max() sandbox.Resources {
	return sandbox.Resources{VCPUs: 2, MemoryMB: 2048, DiskMB: 4096}
}
func (fakeHost) Runtime() string              { return "fake" }
func (fakeHost) Templates() ([]string, error) { return []string{"base"}, nil }

// serve serves the contract over a lifecycle and returns a client of it and its address.
func serve(t *testing.T, sandboxes Sandboxes) (hostv1connect.HostServiceClient, string) {
	t.Helper()
	return serveAll(t, sandboxes, fakeSnapshots{})
}

func serveAll(t *testing.T, sandboxes Sandboxes, snapshots Snapshots) (hostv1connect.HostServiceClient, string) {
	t.Helper()
	handler, err := New(Config{HostID: "host-1", Host: fakeHost{}, Sandboxes: sandboxes, Snapshots: snapshots, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return hostv1connect.NewHostServiceClient(server.Client(), server.URL, connect.WithInterceptors(fault.Interceptor())), server.URL
}

func TestHostIsDescribed(t *testing.T) {
	client, _ := serve(t, fakeSandboxes{})
	resp, err := client.GetHost(t.Context(), connect.NewRequest(&hostv1.GetHostRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if m := resp.Msg; m.GetHostId() != "host-1" || m.GetRuntime() != "fake" || m.GetMaxResources().GetMemoryMb() != 2048 || len(m.GetTemplates()) != 1 {
		t.Errorf("host is %v", m)
	}
}

func TestSandboxesAreTranslated(t *testing.T) {
	created := time.Now().UTC()
	client, _ := serve(t, fakeSandboxes{
		create: func(r sandbox.CreateRequest) (sandbox.Sandbox, error) {
			if r.ID != "sba" || r.Template != "base" || r.Env["A"] != "b" || r.DefaultUser != "user" || r.Resources != (sandbox.Resources{VCPUs: 1, MemoryMB: 2, DiskMB: 3}) {
				t.Errorf("asked for %+v", r)
			}
			return sandbox.Sandbox{ID: r.ID, Status: sandbox.Running, CreatedAt: created, GuestIP: "10.0.0.2"}, nil
		},
		get: func(id string) (sandbox.Sandbox, error) {
			return sandbox.Sandbox{}, fault.New(fault.NotFound, "sandbox %q does not exist", id)
		},
		destroy: func(string) error { return errors.New("secret detail") },
	})
	resp, err := client.CreateSandbox(t.Context(), connect.NewRequest(&hostv1.CreateSandboxRequest{
		Id: "sba", Template: "base", Env: map[string]string{"A": "b"}, DefaultUser: "user", Resources: &hostv1.Resources{Vcpus: 1, MemoryMb: 2, DiskMb: 3},
	}))
	if err != nil {
		t.Fatal(err)
	}
	sb := resp.Msg.GetSandbox()
	if sb.GetStatus() != hostv1.SandboxStatus_SANDBOX_STATUS_RUNNING || !sb.GetCreatedAt().AsTime().Equal(created) || sb.StartedAt != nil || sb.GetGuestIp() != "10.0.0.2" {
		t.Errorf("created %v", sb)
	}
	if _, err := client.GetSandbox(t.Context(), connect.NewRequest(&hostv1.GetSandboxRequest{Id: "sbnone"})); !fault.Is(err, fault.NotFound) {
		t.Errorf("get: %v", err)
	}
	_, err = client.DestroySandbox(t.Context(), connect.NewRequest(&hostv1.DestroySandboxRequest{Id: "sba"}))
	if !fault.Is(err, fault.Internal) || strings.Contains(err.Error(), "secret") {
		t.Errorf("destroy: %v", err)
	}
}

func TestEveryStatusHasAName(t *testing.T) {
	for _, s := range []sandbox.Status{sandbox.Starting, sandbox.Running, sandbox.Pausing, sandbox.Paused, sandbox.Resuming, sandbox.Stopping, sandbox.Stopped, sandbox.Failed} {
		if toStatus[s] == hostv1.SandboxStatus_SANDBOX_STATUS_UNSPECIFIED {
			t.Errorf("status %q has none in the contract", s)
		}
	}
}

func TestWatchStreamsNews(t *testing.T) {
	client, _ := serve(t, fakeSandboxes{watch: func(ctx context.Context, news func(sandbox.Sandbox) error, synced func() error) error {
		if err := errors.Join(news(sandbox.Sandbox{ID: "sba"}), synced(), news(sandbox.Sandbox{ID: "sbb"})); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.WatchSandboxes(ctx, connect.NewRequest(&hostv1.WatchSandboxesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"sba", "", "sbb"} {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		if got := stream.Msg().GetSandbox().GetId(); got != want || (want == "") != (stream.Msg().GetSynced() != nil) {
			t.Errorf("news %v, want %q", stream.Msg(), want)
		}
	}
}

func TestProcessesReachTheGuest(t *testing.T) {
	guest := guestclient.New(testenv.StartEnvd(t), testenv.EnvdToken)
	t.Cleanup(guest.Close)
	client, _ := serve(t, fakeSandboxes{guest: func(id string) (*guestclient.Client, error) {
		if id != "sba" {
			return nil, fault.New(fault.NotFound, "sandbox %q does not exist", id)
		}
		return guest, nil
	}})
	stream, err := client.StartProcess(t.Context(), connect.NewRequest(&hostv1.StartProcessRequest{SandboxId: "sba", Cmd: "cat", Stdin: true, Tag: "t"}))
	if err != nil {
		t.Fatal(err)
	}
	selector := &hostv1.ProcessSelector{Selector: &hostv1.ProcessSelector_Tag{Tag: "t"}}
	var out strings.Builder
	var end *hostv1.ProcessEvent_End
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *hostv1.ProcessEvent_Start_:
			list, err := client.ListProcesses(t.Context(), connect.NewRequest(&hostv1.ListProcessesRequest{SandboxId: "sba"}))
			if err != nil || len(list.Msg.GetProcesses()) != 1 || list.Msg.GetProcesses()[0].GetPid() != e.Start.GetPid() {
				t.Errorf("processes: %v, %v", list, err)
			}
			_, err = client.SendInput(t.Context(), connect.NewRequest(&hostv1.SendInputRequest{SandboxId: "sba", Process: selector, Input: &hostv1.SendInputRequest_Stdin{Stdin: []byte("in")}}))
			if err != nil {
				t.Error(err)
			}
			if _, err := client.CloseStdin(t.Context(), connect.NewRequest(&hostv1.CloseStdinRequest{SandboxId: "sba", Process: selector})); err != nil {
				t.Error(err)
			}
		case *hostv1.ProcessEvent_Stdout:
			out.Write(e.Stdout)
		case *hostv1.ProcessEvent_End_:
			end = e.End
		}
	}
	if err := stream.Err(); err != nil || out.String() != "in" || end.GetExitCode() != 0 || end == nil {
		t.Errorf("printed %q, ended %v, %v", out.String(), end, err)
	}
	_, err = client.SignalProcess(t.Context(), connect.NewRequest(&hostv1.SignalProcessRequest{SandboxId: "sba", Process: selector, Signal: 1}))
	if !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("signal 1: %v", err)
	}
	if _, err := client.ListProcesses(t.Context(), connect.NewRequest(&hostv1.ListProcessesRequest{SandboxId: "sbnone"})); !fault.Is(err, fault.NotFound) {
		t.Errorf("processes of an unknown sandbox: %v", err)
	}
}

func TestFilesReachTheGuest(t *testing.T) {
	guest := guestclient.New(testenv.StartEnvd(t), testenv.EnvdToken)
	t.Cleanup(guest.Close)
	client, url := serve(t, fakeSandboxes{guest: func(string) (*guestclient.Client, error) { return guest, nil }})
	path := filepath.Join(t.TempDir(), "file")
	content := bytes.Repeat([]byte("x"), 3<<20)

	post := func(path string) *http.Response {
		t.Helper()
		resp, err := http.Post(url+hostv1.FilesURL("sba", path, ""), "application/octet-stream", bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	if resp := post(path); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("write: %s", resp.Status)
	}
	if err := fault.ReadHTTP(post("~nobody/x")); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("write to a bad path: %v", err)
	}
	resp, err := http.Get(url + hostv1.FilesURL("sba", path, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, content) || resp.ContentLength != int64(len(content)) {
		t.Errorf("read %d bytes: %v", len(got), err)
	}
	stat, err := client.StatFile(t.Context(), connect.NewRequest(&hostv1.StatFileRequest{SandboxId: "sba", Path: path}))
	if err != nil || stat.Msg.GetEntry().GetSize() != int64(len(content)) || stat.Msg.GetEntry().GetType() != hostv1.FileType_FILE_TYPE_FILE {
		t.Errorf("stat: %v, %v", stat, err)
	}
	if _, err := client.RemoveFile(t.Context(), connect.NewRequest(&hostv1.RemoveFileRequest{SandboxId: "sba", Path: path})); err != nil {
		t.Error(err)
	}
	if _, err := client.StatFile(t.Context(), connect.NewRequest(&hostv1.StatFileRequest{SandboxId: "sba", Path: path})); !fault.Is(err, fault.NotFound) {
		t.Errorf("stat of a removed file: %v", err)
	}
}

func TestTerminalsReachTheGuest(t *testing.T) {
	guest := guestclient.New(testenv.StartEnvd(t), testenv.EnvdToken)
	t.Cleanup(guest.Close)
	client, _ := serve(t, fakeSandboxes{guest: func(string) (*guestclient.Client, error) { return guest, nil }})
	stream, err := client.StartProcess(t.Context(), connect.NewRequest(&hostv1.StartProcessRequest{
		SandboxId: "sba", Cmd: "sh", Args: []string{"-c", "read x; stty size; echo $x"}, Tag: "t", Terminal: &hostv1.TerminalSize{Cols: 100, Rows: 30},
	}))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	selector := &hostv1.ProcessSelector{Selector: &hostv1.ProcessSelector_Tag{Tag: "t"}}
	_, err = client.ResizeTerminal(t.Context(), connect.NewRequest(&hostv1.ResizeTerminalRequest{
		SandboxId: "sba", Process: selector, Size: &hostv1.TerminalSize{Cols: 7, Rows: 5},
	}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.SendInput(t.Context(), connect.NewRequest(&hostv1.SendInputRequest{
		SandboxId: "sba", Process: selector, Input: &hostv1.SendInputRequest_Terminal{Terminal: []byte("typed\r")},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.SendInput(t.Context(), connect.NewRequest(&hostv1.SendInputRequest{SandboxId: "sba", Process: selector})); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("input for nothing: %v", err)
	}
	read := func(s *connect.ServerStreamForClient[hostv1.ProcessEvent]) (out string, end *hostv1.ProcessEvent_End) {
		for s.Receive() {
			out += string(s.Msg().GetTerminal())
			end = s.Msg().GetEnd()
		}
		return out, end
	}
	out, end := read(stream)
	if stream.Err() != nil || end == nil || end.GetExitCode() != 0 || !strings.Contains(out, "5 7\r\ntyped") {
		t.Errorf("printed %q, ended %v, %v", out, end, stream.Err())
	}
	again, err := client.ConnectProcess(t.Context(), connect.NewRequest(&hostv1.ConnectProcessRequest{SandboxId: "sba", Process: selector, Replay: true}))
	if err != nil || !again.Receive() {
		t.Fatal(err, again.Err())
	}
	if start := again.Msg().GetStart(); start.GetPid() == 0 || start.GetReplayBytes() != uint64(len(out)) {
		t.Errorf("began with %v", start)
	}
	if replayed, end := read(again); replayed != out || end == nil {
		t.Errorf("replayed %q, ended %v, %v", replayed, end, again.Err())
	}
}
