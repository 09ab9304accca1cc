package dnsforward

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// localResolver is what the C library asks when the resolver file names no server.
const localResolver = "127.0.0.1"

// upstreams is the host's list of resolvers, read again when its file changes.
// It is safe for concurrent use.
type upstreams struct {
	path string

	mu   sync.Mutex
	seen fileState
	list *upstreamList
}

// fileState is what tells two states of a file apart. The file is compared by identity
// also, because network managers replace it rather than write into it.
type fileState struct {
	info     os.FileInfo
	modified time.Time
	size     int64
}

func (s fileState) same(t fileState) bool {
	if s.info == nil || t.info == nil {
		return s.info == nil && t.info == nil
	}
	return os.SameFile(s.info, t.info) && s.modified.Equal(t.modified) && s.size == t.size
}

// current returns the list. A file that is missing counts as empty; one that cannot be
// read is an error only while there is no earlier list to go on with.
func (u *upstreams) current() (*upstreamList, error) {
	var state fileState
	if info, err := os.Stat(u.path); err == nil {
		state = fileState{info: info, modified: info.ModTime(), size: info.Size()}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.list != nil && u.seen.same(state) {
		return u.list, nil
	}
	servers, err := readServers(u.path)
	if err != nil {
		if u.list != nil {
			return u.list, nil
		}
		return nil, err
	}
	u.list, u.seen = &upstreamList{servers: servers}, state
	return u.list, nil
}

// readServers returns the name servers of the resolver file at path as host:port.
func readServers(path string) ([]string, error) {
	config, err := dns.ClientConfigFromFile(path)
	switch {
	case os.IsNotExist(err):
		config = &dns.ClientConfig{}
	case err != nil:
		return nil, fmt.Errorf("read the host's resolvers: %w", err)
	}
	if len(config.Servers) == 0 {
		config.Servers = []string{localResolver}
	}
	servers := make([]string, 0, len(config.Servers))
	for _, server := range config.Servers {
		servers = append(servers, net.JoinHostPort(server, "53"))
	}
	return servers, nil
}
