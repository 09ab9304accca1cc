package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/snapshot"
)

// CreateRequest says what to make. The caller chooses the id.
type CreateRequest struct {
	ID          string
	Template    string
	Resources   Resources         // of a snapshot: zero, or the snapshot's
	Env         map[string]string // of every process of the sandbox
	DefaultUser string            // empty: the template's
	// Snapshot is the id of one to make it from in place of the template's image; its
	// processes come along, and Env is added to its own.
	Snapshot string
	// Wait is how long to wait for room on a host that is full.
	Wait time.Duration
}

const tokenBytes = 16

// creation is a create under way.
type creation struct {
	launch
	e        *entry
	need     demand
	wait     time.Duration
	bytes    int64 // of the snapshot, on the disk; 0: there is none
	reserved bool  // the entry is in its place
}

var (
	roomPhases = []phase[*creation]{
		{"room", "find room on the host", (*creation).takeRoom},
	}
	introducePhases = []phase[*creation]{
		{"init", "tell the guest who it is", func(c *creation, ctx context.Context) error { return c.introduce(ctx, c.e) }},
	}
)

// Create makes a sandbox and returns when it is usable. When it fails nothing is left.
func (s *Service) Create(ctx context.Context, req CreateRequest) (Sandbox, error) {
	c, err := s.newCreation("create", req)
	if err != nil {
		return Sandbox{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, launchTime(c.bytes)+req.Wait)
	defer cancel()
	ctx, done, err := c.reserve(ctx)
	if err != nil {
		return Sandbox{}, err
	}
	defer done()
	if err := c.make(ctx); err != nil {
		return Sandbox{}, c.abandon(ctx, fmt.Errorf("create sandbox: %w", err))
	}
	c.publish()
	return s.Get(req.ID)
}

// newCreation refuses what cannot be made, before anything is taken.
func (s *Service) newCreation(name string, req CreateRequest) (*creation, error) {
	if !idPattern.MatchString(req.ID) {
		return nil, fault.New(fault.InvalidRequest, "sandbox id %q must match %s", req.ID, idPattern)
	}
	c := &creation{wait: req.Wait}
	c.launch = launch{
		operation: operation{s: s, name: name}, id: req.ID, hostname: req.ID, resources: req.Resources, run: &run{id: req.ID},
		origin: origin{GuestDir: s.cfg.EnvdDir, Env: req.Env, DefaultUser: req.DefaultUser},
	}
	template, err := c.findSource(req)
	if err != nil {
		return nil, err
	}
	if err := c.makeEntry(template); err != nil {
		return nil, err
	}
	return c, s.checkDisk()
}

// makeEntry makes what the host will know of the sandbox, from what the launch says.
func (c *creation) makeEntry(template string) error {
	token, err := newToken()
	if err != nil {
		return err
	}
	c.origin.Token = token
	c.e = &entry{state: state{
		sandbox: Sandbox{
			ID: c.id, Status: Starting, Template: template, Resources: c.resources,
			Runtime: c.s.cfg.Runtime.Name(), CreatedAt: time.Now(),
		},
		origin: c.origin,
	}}
	return nil
}

// findSource finds what the sandbox is to be made of, and the name of its template.
func (c *creation) findSource(req CreateRequest) (template string, err error) {
	s := c.s
	if req.Snapshot != "" {
		snap, err := s.Snapshots().get(req.Snapshot)
		if err != nil {
			return "", err
		}
		if template = req.Template; template == "" {
			template = snap.Template
		}
		return template, c.from(snap)
	}
	if err := s.checkResources(req.Resources); err != nil {
		return "", err
	}
	im, err := s.cfg.Images.Lookup(req.Template)
	if err != nil {
		return "", err
	}
	c.origin.Image = im.Path
	if c.origin.DefaultUser == "" {
		c.origin.DefaultUser = im.DefaultUser
	}
	c.need = demand{memoryMB: c.resources.MemoryMB, nowMB: freshMemoryMB}
	return req.Template, nil
}

// from takes what a snapshot says over.
func (c *creation) from(snap snapshot.Snapshot) error {
	has := Resources(snap.Resources)
	if c.resources != (Resources{}) && c.resources != has {
		return fault.New(fault.InvalidRequest, "a sandbox made from snapshot %s has its %d vcpus, %d MiB of memory and %d MiB of disk; leave other sizes out",
			snap.ID, has.VCPUs, has.MemoryMB, has.DiskMB)
	}
	if err := c.s.checkResources(has); err != nil {
		return err
	}
	if snap.Runtime != c.s.cfg.Runtime.Name() {
		return fault.New(fault.HostUnavailable, "snapshot %s was written by the runtime %s, and this host has %s", snap.ID, snap.Runtime, c.s.cfg.Runtime.Name())
	}
	env := maps.Clone(snap.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, c.origin.Env)
	user := c.origin.DefaultUser
	if user == "" {
		user = snap.DefaultUser
	}
	c.resources, c.snapshot, c.formerToken = has, snap.ID, snap.Token
	c.origin = origin{Image: snap.Image, GuestDir: snap.GuestDir, Env: env, DefaultUser: user}
	c.bytes, c.need = snap.Bytes, restoreDemand(has, snap.Bytes)
	return nil
}

// restoreDemand is what a run takes that goes on from a snapshot of that size.
func restoreDemand(r Resources, bytes int64) demand {
	return demand{memoryMB: r.MemoryMB, nowMB: freshMemoryMB + min(r.MemoryMB, int(bytes/mib))}
}

func (s *Service) checkResources(got Resources) error {
	for _, r := range []struct {
		name      string
		got, most int
	}{
		{"vcpus", got.VCPUs, s.cfg.Max.VCPUs},
		{"memory_mb", got.MemoryMB, s.cfg.Max.MemoryMB},
		{"disk_size_mb", got.DiskMB, s.cfg.Max.DiskMB},
	} {
		if r.got < 1 || r.got > r.most {
			return fault.New(fault.InvalidRequest, "%s must be from 1 to %d on this host, not %d", r.name, r.most, r.got)
		}
	}
	return nil
}

func newToken() (string, error) {
	token := make([]byte, tokenBytes)
	if _, err := rand.Read(token); err != nil {
		return "", err
	}
	return hex.EncodeToString(token), nil
}

// reserve puts the entry in its place, which keeps its id from others.
func (c *creation) reserve(ctx context.Context) (op context.Context, done func(), err error) {
	s := c.s
	s.mu.Lock()
	switch _, taken := s.entries[c.id]; {
	case s.stopping:
		err = errStopping
	case taken:
		err = fault.New(fault.Conflict, "sandbox %q exists already", c.id)
	}
	if err != nil {
		s.mu.Unlock()
		return nil, nil, err
	}
	s.entries[c.id] = c.e
	op, done = c.e.begin(ctx, actCreate)
	s.mu.Unlock()
	s.set(c.e, func(*state) {})
	c.at("record")
	return op, done, nil
}

// make brings the sandbox into being, but for telling anybody.
func (c *creation) make(ctx context.Context) error {
	c.slot = func(r *run) {
		c.s.set(c.e, func(st *state) {
			st.run, st.slot = r, r.slot
			st.sandbox.HostIP, st.sandbox.GuestIP = r.slot.Gateway.String(), r.slot.Guest.Addr().String()
		})
	}
	if ready := c.s.warm.take(c.snapshot); ready != nil {
		c.id, c.run, c.undo = ready.id, ready.run, ready.undo
		c.run.guest.Close() // it showed the snapshot's token
		c.run.guest = newGuest(c.run, c.origin.Token)
		c.slot(c.run)
	} else {
		if err := carryOut(ctx, &c.operation, c, roomPhases); err != nil {
			return err
		}
		if err := c.start(ctx); err != nil {
			return err
		}
	}
	return carryOut(ctx, &c.operation, c, introducePhases)
}

func (c *creation) takeRoom(ctx context.Context) error {
	at, err := c.s.makeRoom(ctx, c.need, c.wait)
	if err != nil {
		return err
	}
	c.onFailure(func(context.Context) error { at.leave(); return nil })
	c.run.place = at
	return nil
}

// publish ends a create that went well.
func (c *creation) publish() {
	s := c.s
	s.set(c.e, func(st *state) {
		now := time.Now()
		st.sandbox.Status, st.sandbox.StartedAt, st.sandbox.LastActiveAt = Running, now, now
	})
	s.follow(c.e, c.run)
	c.at("running")
	c.log(c.e.sandbox.ID, "template", c.e.sandbox.Template, "snapshot", c.snapshot)
}

// abandon undoes a create that failed and forgets the sandbox.
func (c *creation) abandon(ctx context.Context, err error) error {
	s := c.s
	if undoErr := c.rollBack(ctx); undoErr != nil {
		// The record stays, so that a destroy, or the next start, tries again.
		s.cfg.Log.Error("undo create", "sandbox", c.e.sandbox.ID, "error", undoErr)
		s.finish(c.e, Failed, "the create failed and could not be undone; delete the sandbox")
		return err
	}
	s.forget(c.e)
	return err
}
