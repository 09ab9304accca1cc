package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
	"github.com/wrenn-sandbox/wrenn/proto/host/v1/hostv1connect"
)

const (
	// echoScript makes a terminal in which a program, and not the terminal, echoes.
	echoScript = "stty raw -echo; printf ready; exec cat"
	ready      = "ready"
)

// message is one of the terminal's WebSocket.
type message struct {
	Type string   `json:"type"`
	Cmd  string   `json:"cmd,omitempty"`
	Args []string `json:"args,omitempty"`
	Data []byte   `json:"data,omitempty"`
}

// webTerminal is a terminal as clients of the API have it.
type webTerminal struct{ conn *websocket.Conn }

// openTerminal starts one.
func (b *bench) openTerminal(ctx context.Context) (echoer, error) {
	header := http.Header{"X-Api-Key": {b.server.Key()}}
	address := b.server.URL() + "/v1/sandboxes/" + b.sandbox.ID + "/pty"
	conn, _, err := websocket.Dial(ctx, address, &websocket.DialOptions{HTTPHeader: header, HTTPClient: newClient(nil)}) //nolint:bodyclose // a WebSocket's has none
	if err != nil {
		return nil, err
	}
	t := &webTerminal{conn}
	err = wsjson.Write(ctx, conn, message{Type: "start", Cmd: "sh", Args: []string{"-c", echoScript}})
	if err == nil {
		err = t.await(ctx, ready)
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// await reads output until all of text has come.
func (t *webTerminal) await(ctx context.Context, text string) error {
	for text != "" {
		var m message
		if err := wsjson.Read(ctx, t.conn, &m); err != nil {
			return err
		}
		switch m.Type {
		case "started", "ping":
			continue
		case "output":
		default:
			return fmt.Errorf("the terminal said %s: %s", m.Type, m.Data)
		}
		var ok bool
		if text, ok = strings.CutPrefix(text, string(m.Data)); !ok {
			return fmt.Errorf("the terminal printed %q, not %q", m.Data, text)
		}
	}
	return nil
}

func (t *webTerminal) echo(ctx context.Context, key byte) error {
	if err := wsjson.Write(ctx, t.conn, message{Type: "input", Data: []byte{key}}); err != nil {
		return err
	}
	return t.await(ctx, string(key))
}

func (t *webTerminal) close() {
	_ = wsjson.Write(context.Background(), t.conn, message{Type: "kill"}) // the sandbox ends soon
	t.conn.CloseNow()
}

// closeLimit bounds how long ending a terminal may take.
const closeLimit = time.Second

// rpcTerminal is a terminal as the control floor has it.
type rpcTerminal struct {
	client  hostv1connect.HostServiceClient
	stream  *connect.ServerStreamForClient[hostv1.ProcessEvent]
	cancel  context.CancelFunc
	sandbox string
	process *hostv1.ProcessSelector
}

// openRPC starts one at the host agent.
func openRPC(ctx context.Context, client *http.Client, sandbox string) (echoer, error) {
	ctx, cancel := context.WithCancel(ctx)
	t := &rpcTerminal{client: hostv1connect.NewHostServiceClient(client, "http://host"), cancel: cancel, sandbox: sandbox}
	var err error
	t.stream, err = t.client.StartProcess(ctx, connect.NewRequest(&hostv1.StartProcessRequest{
		SandboxId: sandbox, Cmd: "sh", Args: []string{"-c", echoScript}, Terminal: &hostv1.TerminalSize{Cols: 80, Rows: 24},
	}))
	if err != nil {
		cancel()
		return nil, err
	}
	if err := t.await(ready); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *rpcTerminal) await(text string) error {
	for text != "" {
		if !t.stream.Receive() {
			return errors.Join(errors.New("the terminal ended"), t.stream.Err())
		}
		if start := t.stream.Msg().GetStart(); start != nil {
			t.process = &hostv1.ProcessSelector{Selector: &hostv1.ProcessSelector_Pid{Pid: start.GetPid()}}
			continue
		}
		output := t.stream.Msg().GetTerminal()
		var ok bool
		if text, ok = strings.CutPrefix(text, string(output)); !ok {
			return fmt.Errorf("the terminal printed %q, not %q", output, text)
		}
	}
	return nil
}

func (t *rpcTerminal) echo(ctx context.Context, key byte) error {
	_, err := t.client.SendInput(ctx, connect.NewRequest(&hostv1.SendInputRequest{
		SandboxId: t.sandbox, Process: t.process, Input: &hostv1.SendInputRequest_Terminal{Terminal: []byte{key}},
	}))
	if err != nil {
		return err
	}
	return t.await(string(key))
}

func (t *rpcTerminal) close() {
	if t.process != nil {
		// A connection that is stuck does not carry this either.
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		_, _ = t.client.SignalProcess(ctx, connect.NewRequest(&hostv1.SignalProcessRequest{
			SandboxId: t.sandbox, Process: t.process, Signal: hostv1.Signal_SIGNAL_SIGKILL,
		})) // the sandbox ends soon
	}
	t.cancel()
	_ = t.stream.Close()
}
