package network

import (
	"sync"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/network/dnsforward"
)

// holdings notes which slots this process uses, with the server of each one's DNS.
// It is safe for concurrent use; after close it takes nothing in.
type holdings struct {
	mu     sync.Mutex
	held   map[int]*dnsforward.Server // nil while the slot is in the making
	closed bool
}

func newHoldings() *holdings { return &holdings{held: make(map[int]*dnsforward.Server)} }

// put notes that this process uses index, and its server once there is one.
func (h *holdings) put(index int, server *dnsforward.Server) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fault.New(fault.HostUnavailable, "the host is shutting down; try again in a moment")
	}
	h.held[index] = server
	return nil
}

// take forgets index and returns its server, or nil, for the caller to close.
func (h *holdings) take(index int) *dnsforward.Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	server := h.held[index]
	delete(h.held, index)
	return server
}

// has reports whether this process uses index.
func (h *holdings) has(index int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.held[index]
	return ok
}

// close forgets everything and returns the servers for the caller to close.
func (h *holdings) close() []*dnsforward.Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	var servers []*dnsforward.Server
	for _, server := range h.held {
		if server != nil {
			servers = append(servers, server)
		}
	}
	clear(h.held)
	return servers
}
