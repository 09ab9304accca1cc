package guestclient

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestPorts(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ports, err := startEnvd(t).Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := uint16(l.Addr().(*net.TCPAddr).Port)
	i := slices.IndexFunc(ports, func(p Listening) bool { return p.Port == want })
	if i < 0 || ports[i].Address != "127.0.0.1" || ports[i].Process == "" || ports[i].PID == 0 {
		t.Errorf("port %d is not among %v as it should be", want, ports)
	}
}

func TestPortsOfAHostileGuest(t *testing.T) {
	answer := ""
	c := hostile(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(answer)) })
	for _, answer = range []string{"", "nonsense", `{"ports":[{"port":65536}]}`, `{"ports":[{"port":-1}]}`, `{"ports":` + strings.Repeat("[", 1<<20)} {
		if _, err := c.Ports(t.Context()); !fault.Is(err, fault.AgentError) {
			t.Errorf("%.30q: %v", answer, err)
		}
	}
	answer = `{"ports":[{"port":0,"address":"::"},{"port":1,"address":"<b>"},{"port":80,"address":"::","process":"` + strings.Repeat("é", 100) + `"}]}`
	ports, err := c.Ports(t.Context())
	if err != nil || len(ports) != 1 || ports[0].Port != 80 || len(ports[0].Process) > maxProcessName {
		t.Errorf("%v, %v", ports, err)
	}
}
