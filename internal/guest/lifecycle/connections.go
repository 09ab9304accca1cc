package lifecycle

import (
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Connections knows the connections of the daemon's HTTP server, so that they can be set
// going again after a restore. It is safe for concurrent use; its zero value is ready.
type Connections struct {
	mu   sync.Mutex
	open map[*net.TCPConn]struct{}
}

// Track is to be the server's ConnState.
func (c *Connections) Track(conn net.Conn, state http.ConnState) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if c.open == nil {
			c.open = make(map[*net.TCPConn]struct{})
		}
		c.open[tcp] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, tcp)
	case http.StateActive, http.StateIdle:
	}
}

// Revive makes the kernel send on every connection what is to be sent. A restored gVisor
// has none of its TCP timers: not that of retransmission, not that of window probes, not
// that of keep-alives. What was under way when it was written down is waited for until
// somebody writes; and who waits for it does not write. Setting this option, though it is
// set already, looks at what there is to send, and with that starts the timers.
func (c *Connections) Revive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.SetNoDelay(true) // one that has broken meanwhile needs nothing
	}
}

// gvisorRelease is how a kernel release ends that is gVisor's.
const gvisorRelease = "-gvisor"

// CalmTCP turns tail loss probes (RACK) off where the kernel is gVisor. There every write
// puts the probe off and with it the retransmission, even a write that the congestion
// window does not let out: a command that prints often and little would stand still after
// a lost acknowledgement, until its socket's buffer is full, which takes it 15 seconds and
// more. Without the probes gVisor retransmits after 200 ms, as RFC 6675 says.
func CalmTCP() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	if !strings.HasSuffix(unix.ByteSliceToString(name.Release[:]), gvisorRelease) {
		return nil
	}
	err := os.WriteFile("/proc/sys/net/ipv4/tcp_recovery", []byte("0\n"), 0o644) //nolint:gosec // the mode is that of a file that is there
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a sandbox without a network
	}
	return err
}
