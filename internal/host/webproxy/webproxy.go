// Package webproxy passes HTTP requests on to servers in the sandboxes of this host: at
// /proxy/{sandbox}/{port}/ it serves what listens on that port. It reaches ports of running
// guests and nothing else, whatever a request says, and a guest that ends or is paused takes
// its connections with it.
//
// Who may ask is for the control floor to decide, which is the only one that can reach the
// listener, or has the proxy at hand; so is what X-Forwarded headers say. The package must
// not know the host RPC, nor how sandboxes are run.
package webproxy

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/webroute"
)

// Sandboxes is the lifecycle, as this package needs it.
type Sandboxes interface {
	Get(id string) (sandbox.Sandbox, error)
	Watch(ctx context.Context, sandbox func(sandbox.Sandbox) error, synced func() error) error
}

// DefaultMaxConnections is how many requests and upgraded connections of one sandbox are
// open at once, unless it is said otherwise: as many connections as a guest may have. What
// a sandbox's clients may do is decided by the control floor, below that.
const DefaultMaxConnections = 16 << 10

// defaultAnswerTime is how long an application may think about a request. It is below the
// idle times of servers, which would otherwise be blamed.
const defaultAnswerTime = 10 * time.Minute

// Config is what a Proxy needs.
type Config struct {
	Sandboxes Sandboxes
	// MaxConnections is how many requests and upgraded connections of one sandbox may be
	// open at once; 0: DefaultMaxConnections.
	MaxConnections int
	// AnswerTime is how long an application may take, when it has a request, until its
	// answer begins; 0: ten minutes.
	AnswerTime time.Duration
	// Look has a guest look for servers that have just begun to listen on its loopback, and
	// returns when they can be reached; nil: nothing does.
	Look func(ctx context.Context, id string)
	Log  *slog.Logger
}

// Proxy is the handler of proxied requests. Let Run run beside it. It is safe for
// concurrent use.
type Proxy struct {
	cfg Config

	mu     sync.Mutex
	closed bool
	guests map[string]*guest
}

// New returns a proxy.
func New(cfg Config) *Proxy {
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	if cfg.AnswerTime == 0 {
		cfg.AnswerTime = defaultAnswerTime
	}
	return &Proxy{cfg: cfg, guests: map[string]*guest{}}
}

// watchRetry is how long Run waits before it watches again.
const watchRetry = time.Second

// Run follows what becomes of sandboxes, until ctx ends.
func (p *Proxy) Run(ctx context.Context) {
	for ctx.Err() == nil {
		err := p.cfg.Sandboxes.Watch(ctx, func(sb sandbox.Sandbox) error {
			p.follow(sb)
			return nil
		}, func() error { return nil })
		if err != nil {
			p.cfg.Log.ErrorContext(ctx, "watch sandboxes for the proxy", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
}

// follow drops what there is of a sandbox unless that is of its present run.
func (p *Proxy) follow(sb sandbox.Sandbox) {
	p.mu.Lock()
	g := p.guests[sb.ID]
	if g == nil || sb.Status == sandbox.Running && g.run == runOf(sb) {
		p.mu.Unlock()
		return
	}
	delete(p.guests, sb.ID)
	p.mu.Unlock()
	g.close()
}

// EvictProxy resets every connection to a sandbox and forgets it.
func (p *Proxy) EvictProxy(id string) {
	p.mu.Lock()
	g := p.guests[id]
	delete(p.guests, id)
	p.mu.Unlock()
	if g != nil {
		g.close()
	}
}

// Close resets every connection and serves nothing any more.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	guests := p.guests
	p.guests = map[string]*guest{}
	p.mu.Unlock()
	for _, g := range guests {
		g.close()
	}
}

// run tells one life of a sandbox from those before and after it, in which its address may
// be another's.
type run struct {
	address netip.Addr
	started int64 // nanoseconds since 1970
}

func runOf(sb sandbox.Sandbox) run {
	address, err := netip.ParseAddr(sb.GuestIP)
	if err != nil {
		return run{}
	}
	return run{address: address, started: sb.StartedAt.UnixNano()}
}

// guest returns the running guest that a request is for, or the problem with it.
func (p *Proxy) guest(t webroute.Target) (*guest, *webroute.Problem) {
	sb, err := p.cfg.Sandboxes.Get(t.Sandbox)
	if err != nil {
		if !fault.Is(err, fault.NotFound) {
			p.cfg.Log.Error("look for a sandbox to proxy to", "sandbox", t.Sandbox, "error", err)
		}
		return nil, problem(webroute.NotFound(t))
	}
	now := runOf(sb)
	switch {
	case sb.Status == sandbox.Stopping || sb.Status == sandbox.Stopped || sb.Status == sandbox.Failed:
		return nil, problem(webroute.NotFound(t))
	case sb.Status != sandbox.Running || !now.address.IsValid():
		return nil, problem(webroute.Paused(t))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, problem(webroute.NotFound(t))
	}
	g := p.guests[t.Sandbox]
	if g != nil && g.run == now {
		return g, nil
	}
	if g != nil {
		go g.close() // of a run before this one; the news of its end are on their way
	}
	g = newGuest(now, p.cfg.MaxConnections, p.cfg.AnswerTime, func() bool {
		sb, err := p.cfg.Sandboxes.Get(t.Sandbox)
		return err == nil && sb.Status == sandbox.Running && runOf(sb) == now
	})
	if p.cfg.Look != nil {
		g.look = func(ctx context.Context) { p.cfg.Look(ctx, t.Sandbox) }
	}
	p.guests[t.Sandbox] = g
	return g, nil
}

func problem(p webroute.Problem) *webroute.Problem { return &p }
