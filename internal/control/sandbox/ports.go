package sandbox

import (
	"cmp"
	"context"
	"slices"
)

// HostPorts is the ports of sandboxes on the host that runs them.
type HostPorts interface {
	// List returns what servers in a running sandbox listen on.
	List(ctx context.Context, id string) ([]Listening, error)
}

// Listening is one address of a port that a server listens on.
type Listening struct {
	Port    int
	Address string // 0.0.0.0 and :: stand for every one
	PID     uint32 // 0: not known
	Process string
}

// Port is a port that servers in a sandbox listen on.
type Port struct {
	Number    int
	Addresses []string
	Processes []PortProcess
}

// PortProcess is a process that listens on a port.
type PortProcess struct {
	PID  uint32
	Name string
}

// Ports returns the ports that servers in a running sandbox listen on, the lowest first. To
// ask for them is no activity.
func (t *Traffic) Ports(ctx context.Context, id string) ([]Port, error) {
	if err := t.core.requireRunning(ctx, id); err != nil {
		return nil, err
	}
	found, err := t.core.ports.List(ctx, id)
	if err != nil {
		return nil, err
	}
	byNumber := make(map[int]*Port)
	for _, l := range found {
		p := byNumber[l.Port]
		if p == nil {
			p = &Port{Number: l.Port}
			byNumber[l.Port] = p
		}
		if !slices.Contains(p.Addresses, l.Address) {
			p.Addresses = append(p.Addresses, l.Address)
		}
		if process := (PortProcess{l.PID, l.Process}); l.PID != 0 && !slices.Contains(p.Processes, process) {
			p.Processes = append(p.Processes, process)
		}
	}
	ports := make([]Port, 0, len(byNumber))
	for _, p := range byNumber {
		ports = append(ports, *p)
	}
	slices.SortFunc(ports, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
	return ports, nil
}
