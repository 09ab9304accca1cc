package sandbox

import "sync"

// claims is the ids that an action of this process works on. A row in a status of passage
// that is not among them was left by a process that died; and the host's news about one
// that is are not followed, since they may be older than what the action knows. The zero
// value is ready, and it is safe for concurrent use.
type claims struct {
	mu   sync.Mutex
	held map[string]*claim
}

type claim struct {
	holders int
	// news is the last that the host said meanwhile, if anything.
	news *HostSandbox
}

// take claims an id, of a sandbox or a snapshot, beside others that may have it.
func (c *claims) take(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = make(map[string]*claim)
	}
	held := c.held[id]
	if held == nil {
		held = &claim{}
		c.held[id] = held
	}
	held.holders++
}

// release ends take. When nobody has the id any more it returns the last news that came
// meanwhile, if any.
func (c *claims) release(id string) *HostSandbox {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.held[id]
	if held.holders--; held.holders > 0 {
		return nil
	}
	delete(c.held, id)
	return held.news
}

// has reports whether somebody has the id.
func (c *claims) has(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.held[id] != nil
}

// keep reports whether somebody has the sandbox's id, and keeps the news for them then.
func (c *claims) keep(h HostSandbox) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.held[h.ID]
	if held != nil {
		held.news = &h
	}
	return held != nil
}
