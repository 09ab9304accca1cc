package guestclient

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Listening is one address of a port that a server in the guest listens on.
type Listening struct {
	Port    uint16 `json:"port"`
	Address string `json:"address"` // an IP address; 0.0.0.0 and :: stand for every one
	// PID and Process are of who holds it; 0 and empty when none was found.
	PID     uint32 `json:"pid"`
	Process string `json:"process"`
	// Forwarded says that a server on loopback alone can be reached from outside.
	Forwarded bool `json:"forwarded"`
}

// maxPortsBody bounds the list of ports, in bytes. A guest can listen on every one of them,
// though nobody wants to read that.
const maxPortsBody = 8 << 20

// maxProcessName bounds the name of a process, in bytes. The kernel's have 15.
const maxProcessName = 64

// Ports returns what servers in the guest listen on.
func (c *Client) Ports(ctx context.Context) ([]Listening, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/ports", http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := c.ask(c.rpc, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var body struct {
		Ports []Listening `json:"ports"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxPortsBody)).Decode(&body); err != nil {
		return nil, fault.Wrap(err, fault.AgentError, "the sandbox's list of ports is unreadable")
	}
	listening := body.Ports[:0]
	for _, l := range body.Ports {
		if _, err := netip.ParseAddr(l.Address); err != nil || l.Port == 0 {
			continue // it is not the daemon that says this
		}
		if len(l.Process) > maxProcessName {
			l.Process = strings.ToValidUTF8(l.Process[:maxProcessName], "")
		}
		listening = append(listening, l)
	}
	return listening, nil
}
