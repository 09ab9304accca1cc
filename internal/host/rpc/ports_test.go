package rpc

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	hostv1 "github.com/wrenn-sandbox/wrenn/proto/host/v1"
)

func TestPortsAreTranslated(t *testing.T) {
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ports" {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = w.Write([]byte(`{"ports":[{"port":3000,"address":"127.0.0.1","protocol":"tcp","pid":7,"process":"node","forwarded":true}]}`))
	}))
	defer daemon.Close()
	guest := guestclient.New(daemon.Listener.Addr(), "token")
	defer guest.Close()
	client, _ := serve(t, fakeSandboxes{guest: func(id string) (*guestclient.Client, error) {
		if id != "sba" {
			return nil, fault.New(fault.NotFound, "no sandbox")
		}
		return guest, nil
	}})
	resp, err := client.ListPorts(t.Context(), connect.NewRequest(&hostv1.ListPortsRequest{SandboxId: "sba"}))
	if err != nil || len(resp.Msg.GetPorts()) != 1 {
		t.Fatal(resp, err)
	}
	if p := resp.Msg.GetPorts()[0]; p.GetPort() != 3000 || p.GetAddress() != "127.0.0.1" || p.GetPid() != 7 || p.GetProcess() != "node" || !p.GetForwarded() {
		t.Errorf("port %v", p)
	}
	if _, err := client.ListPorts(t.Context(), connect.NewRequest(&hostv1.ListPortsRequest{SandboxId: "sbb"})); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unknown sandbox: %v", err)
	}
}
