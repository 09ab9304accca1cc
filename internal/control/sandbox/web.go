package sandbox

import (
	"context"
	"regexp"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Web is how the ports of a sandbox may be reached from outside. The zero value is the
// default: by everybody who knows the id, as long as it runs.
type Web struct {
	// TrafficToken is what requests need; empty: nothing.
	TrafficToken string
	// AutoResume is whether a request for the sandbox resumes it when it is paused.
	AutoResume bool
	// MaskHost is the Host header that applications get in place of the one that the client
	// sent, with ${PORT} for the port; empty: the client's.
	MaskHost string
}

// Private reports whether requests need the traffic token.
func (w Web) Private() bool { return w.TrafficToken != "" }

// WebOptions is what the creator of a sandbox may say of Web.
type WebOptions struct {
	Private    bool
	AutoResume bool
	MaskHost   string
}

// tokenLength is that of a traffic token, in characters of the id alphabet (165 bits).
const tokenLength = 32

// maskPattern is what a Host header can be: a name or an address, and perhaps a port.
var maskPattern = regexp.MustCompile(`^(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?:[0-9]{1,5}|\$\{PORT\}))?$`)

func (o WebOptions) validate() error {
	if o.MaskHost != "" && !maskPattern.MatchString(o.MaskHost) {
		return fault.New(fault.InvalidRequest,
			"field \"mask_request_host\" is %q and must be a host name or address, perhaps with a port, such as localhost:${PORT}", o.MaskHost)
	}
	return nil
}

// settings is what a new sandbox gets for o: a private one has a token of its own.
func (o WebOptions) settings() Web {
	w := Web{AutoResume: o.AutoResume, MaskHost: o.MaskHost}
	if o.Private {
		w.TrafficToken = randomName(tokenLength)
	}
	return w
}

// renewed is the settings for a copy: its visitors are not those of the original.
func (w Web) renewed() Web {
	if w.Private() {
		w.TrafficToken = randomName(tokenLength)
	}
	return w
}

// Traffic is what those who let requests through to ports of sandboxes need to know and to
// tell. It is safe for concurrent use.
type Traffic struct {
	core *Service
	// waking has the wakes under way, so that many requests are one resume.
	waking singleflight.Group
}

// Traffic returns the service of proxied requests.
func (s *Service) Traffic() *Traffic { return s.traffic }

// Find returns one sandbox as the store has it.
func (t *Traffic) Find(ctx context.Context, id string) (Sandbox, error) {
	return t.core.store.Get(ctx, id)
}

// Begin notes that a request begins, and that it is over when the returned function is
// called. It is false for a sandbox that is being paused or stopped.
func (t *Traffic) Begin(id string) (end func(), ok bool) { return t.core.activity.begin(id, request) }

// Touch notes that bytes went to or from the sandbox.
func (t *Traffic) Touch(id string) { t.core.activity.touch(id) }

// Follow calls each with what becomes of sandboxes, until ctx ends. Of several changes of a
// sandbox that come quickly it may tell only the last.
func (t *Traffic) Follow(ctx context.Context, each func(id string, status Status)) {
	t.core.changes.follow(ctx, each)
}

const (
	// wakeStep is how often a sandbox between two states is looked at.
	wakeStep = 20 * time.Millisecond
	// wakeWait is how long a wake waits for room on the host.
	wakeWait = 30 * time.Second
)

// Wake resumes a sandbox that is paused, or about to be, and answers when it is usable. What
// it does is one for all who ask at the same time, and goes on when they go away.
func (t *Traffic) Wake(ctx context.Context, id string) error {
	done := t.waking.DoChan(id, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTime+wakeWait)
		defer cancel()
		return nil, t.wake(ctx, id)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Refresh makes the store's word on a sandbox what its host says now, unless this process
// works on it. It is for who has seen that they differ.
func (t *Traffic) Refresh(ctx context.Context, id string) error {
	h, err := t.core.host.Get(ctx, id)
	if fault.Is(err, fault.NotFound) {
		h, err = lost(id), nil
	}
	if err != nil {
		return err
	}
	return t.core.follow(ctx, h)
}

func (t *Traffic) wake(ctx context.Context, id string) error {
	tick := time.NewTicker(wakeStep)
	defer tick.Stop()
	for {
		sb, err := t.core.store.Get(ctx, id)
		if err != nil {
			return err
		}
		switch sb.Status {
		case Running:
			return nil
		case Paused:
			_, err := t.core.Resume(ctx, id, wakeWait)
			if !fault.Is(err, fault.InvalidState) {
				return err
			}
			// Somebody else resumes it, or it is gone: the next look tells.
		case Pausing, Resuming, Pending, Starting:
		default:
			return sb.refuse("only a paused sandbox can be resumed")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
