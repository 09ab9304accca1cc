// Package ports knows which TCP ports servers of the sandbox listen on, and makes those
// that listen on loopback alone reachable from outside on the same port.
//
// It finds listeners in /proc, so it needs no help from the servers, and forwards inside
// this process, so that there is no child to lose and nothing to install. The package must
// not know who asks for the ports, nor what is spoken on them.
package ports

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Config configures a PortSubsystem.
type Config struct {
	// Interface is the network interface on whose addresses servers that listen on
	// loopback become reachable. Empty forwards nothing: what a machine that is not a
	// sandbox has on its loopback is nobody else's business.
	Interface string
	// Own is the port of the daemon itself, which is neither listed nor forwarded.
	Own    uint16
	Logger *slog.Logger
}

// Port is a server's listening socket.
type Port struct {
	Port uint16
	// Address is what the server is bound to; unspecified means every address.
	Address netip.Addr
	// Protocol is "tcp" or "tcp6", after the kind of the socket.
	Protocol string
	// PID is the lowest id of the processes that hold the socket, 0 when none was found,
	// and Process that process's name.
	PID     int
	Process string
	// Forwarded says that a server on loopback is reachable from outside.
	Forwarded bool
}

// PortSubsystem watches and forwards ports between Start and Stop, any number of times.
// It is safe for concurrent use. While it is stopped it has no goroutine, no file and no
// connection.
type PortSubsystem struct {
	cfg     Config
	limits  limits
	signals signals

	// life is held over every change between running and stopped.
	life sync.Mutex
	run  *run // nil when stopped

	// asks are for the run to look at once. Each is closed when it has.
	asks chan chan struct{}

	// mu guards what the run publishes for List.
	mu        sync.Mutex
	forwarded map[netip.AddrPort]struct{} // what we hold outside; nil when nothing runs
}

// New returns a stopped PortSubsystem.
func New(cfg Config) *PortSubsystem {
	return &PortSubsystem{cfg: cfg, limits: usualLimits, asks: make(chan chan struct{})}
}

// run is one time between a Start and its Stop.
type run struct {
	cancel context.CancelFunc
	ending <-chan struct{} // closed when it is to end
	done   chan struct{}   // closed when everything is given back
}

// Start begins to watch and to forward, until Stop or until ctx ends. When it runs
// already, that is all.
func (s *PortSubsystem) Start(ctx context.Context) error {
	s.life.Lock()
	defer s.life.Unlock()
	return s.start(ctx)
}

// Stop ends the watching, gives every port back and cuts forwarded connections; their
// peers see a reset, not an end that looks like a whole answer. It returns when all of it
// is done. Stopping again does nothing.
func (s *PortSubsystem) Stop() {
	s.life.Lock()
	defer s.life.Unlock()
	s.stop()
}

// Restart is Stop and then Start, with nothing in between.
func (s *PortSubsystem) Restart(ctx context.Context) error {
	s.life.Lock()
	defer s.life.Unlock()
	s.stop()
	return s.start(ctx)
}

func (s *PortSubsystem) start(ctx context.Context) error {
	if s.run != nil {
		select {
		case <-s.run.ending:
			s.stop()
		default:
			return nil
		}
	}
	table, err := openTable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	s.run = &run{cancel: cancel, ending: ctx.Done(), done: make(chan struct{})}
	w := newWatcher(s, table)
	s.publish(map[netip.AddrPort]struct{}{})
	go func(done chan struct{}) {
		defer close(done)
		defer cancel()
		w.watch(ctx)
	}(s.run.done)
	return nil
}

func (s *PortSubsystem) stop() {
	if s.run == nil {
		return
	}
	s.run.cancel()
	<-s.run.done
	s.run = nil
}

// Subscribe returns a channel that gets a value after the set of ports has changed, and
// what ends the subscription. Changes that come while the last one was not taken yet make
// one value: it says that there is something new, and List says what. A subscriber that
// never looks delays nobody.
func (s *PortSubsystem) Subscribe() (changes <-chan struct{}, unsubscribe func()) {
	return s.signals.subscribe()
}

// lookTime bounds how long List waits for the forwarding of what it lists.
const lookTime = 250 * time.Millisecond

// look has the run look at once, so that what is listed can be reached.
func (s *PortSubsystem) look(ctx context.Context) {
	s.mu.Lock()
	runs := s.forwarded != nil
	s.mu.Unlock()
	if !runs {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	done := make(chan struct{})
	select {
	case s.asks <- done:
	case <-ctx.Done(): // it is just being stopped
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// List returns the ports that servers listen on now, whether the subsystem runs or not.
// Those that are to be forwarded are, when it runs. Its order is that of ports and addresses.
func (s *PortSubsystem) List(ctx context.Context) ([]Port, error) {
	s.look(ctx)
	table, err := openTable()
	if err != nil {
		return nil, err
	}
	defer table.close()
	listeners, err := table.read(nil)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	forwarded := s.forwarded
	s.mu.Unlock()

	sortListeners(listeners)
	owners, err := findOwners(ctx, listeners)
	if err != nil {
		return nil, err
	}
	list := make([]Port, 0, len(listeners))
	reachable := make(map[uint16]bool, len(forwarded))
	for outside := range forwarded {
		reachable[outside.Port()] = true
	}
	for _, l := range listeners {
		if _, ours := forwarded[l.addr]; ours || l.addr.Port() == s.cfg.Own {
			continue
		}
		port := Port{
			Port: l.addr.Port(), Address: l.addr.Addr(), Protocol: "tcp",
			Forwarded: l.addr.Addr().IsLoopback() && reachable[l.addr.Port()],
		}
		if l.v6 {
			port.Protocol = "tcp6"
		}
		if owner, ok := owners[l.inode]; ok {
			port.PID, port.Process = owner.pid, owner.name
		}
		list = append(list, port)
	}
	return list, nil
}

// publish makes the forwarded addresses known to List. The map must not change after.
func (s *PortSubsystem) publish(forwarded map[netip.AddrPort]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forwarded = forwarded
}
