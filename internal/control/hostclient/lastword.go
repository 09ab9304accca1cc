package hostclient

import (
	"net"
	"sync"
	"time"
)

// answerWait bounds how long a write that failed waits for the answer to be read. What was
// answered is here already; only its reader may be busy.
const answerWait = 5 * time.Second

// lastWord is a connection on which a write fails only after all has been read that the
// host has said. A host that refuses the rest of a body answers and closes: a transport that
// learnt of the broken write first would say that, and not why the host had refused.
type lastWord struct {
	net.Conn
	once sync.Once
	read chan struct{} // closed when there is no more to be read
}

func newLastWord(c net.Conn) *lastWord { return &lastWord{Conn: c, read: make(chan struct{})} }

// Read implements net.Conn.
func (c *lastWord) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.end()
	}
	return n, err
}

// Write implements net.Conn.
func (c *lastWord) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		timer := time.NewTimer(answerWait)
		defer timer.Stop()
		select {
		case <-c.read:
		case <-timer.C:
		}
	}
	return n, err
}

// Close implements net.Conn.
func (c *lastWord) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *lastWord) end() { c.once.Do(func() { close(c.read) }) }
