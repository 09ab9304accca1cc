package webproxy

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// maxNames is for how many ports of one sandbox a certificate is asked.
const maxNames = 20

// Certificates says for which names certificates are asked of an authority, which allows a
// domain only so many: names that are sandboxes', a few of each, and only so many a week.
// It counts from the start of the process. It is safe for concurrent use.
type Certificates struct {
	edge *Edge

	mu sync.Mutex
	// week has room for a new name, or not.
	week bucket
	// asked has the names that were let through, by the sandbox's id.
	asked map[string]map[string]bool
}

// week is the time in which authorities count.
const week = 7 * 24 * time.Hour

// Certificates returns what decides for an edge, which gets certificates for so many new
// names of ports a week.
func (e *Edge) Certificates(perWeek int) *Certificates {
	b := newBucket(float64(perWeek) / week.Seconds())
	b.burst, b.tokens = float64(perWeek), float64(perWeek)
	return &Certificates{edge: e, week: b, asked: make(map[string]map[string]bool)}
}

// Allow returns an error for a name for which no certificate is to be there. stored is
// whether there is one already, which costs nothing to use.
func (c *Certificates) Allow(ctx context.Context, name string, stored bool) error {
	to, err := c.edge.shows(ctx, name)
	if err != nil || stored || to.Port == 0 {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	names := c.asked[to.Sandbox]
	name = strings.ToLower(name)
	switch {
	case names[name]:
		return nil
	case len(names) >= maxNames:
		return fault.New(fault.RateLimited, "certificates for %d ports of the sandbox %s were asked for, which is as many as one gets", maxNames, to.Sandbox)
	case !c.week.take(now()):
		return fault.New(fault.RateLimited, "no more certificates for new names are asked for now; --acme-names says how many a week are")
	}
	if names == nil {
		names = make(map[string]bool)
		c.asked[to.Sandbox] = names
	}
	names[name] = true
	return nil
}

// shows returns what is shown under a host name: the port of a sandbox that there is, or the
// zero target for the domain itself. There is one name for each port, though others lead
// there too: otherwise one sandbox would have names without end.
func (e *Edge) shows(ctx context.Context, name string) (webroute.Target, error) {
	to, ours, err := webroute.ParseHost(name, e.domain)
	if err != nil {
		return webroute.Target{}, err
	}
	plain := strconv.Itoa(int(to.Port)) + "-" + to.Sandbox + "." + e.domain
	switch {
	case ours && strings.EqualFold(name, plain):
		_, _, err := e.look(ctx, to.Sandbox)
		return to, err
	case !ours && e.domain != "" && strings.EqualFold(name, e.domain):
		return webroute.Target{}, nil
	}
	return webroute.Target{}, fault.New(fault.NotFound, "%q is not a name of this server", name)
}
