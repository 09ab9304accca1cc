package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/guestclient"
	"github.com/wrenn-sandbox/wrenn/internal/host/image"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

const (
	// createTimeout bounds a whole create; the slowest machine that is still of use
	// needs a few seconds.
	createTimeout = 60 * time.Second
	// undoTimeout bounds what is given back after a failure.
	undoTimeout = 30 * time.Second

	// guestDir is where the guest daemon is seen inside a sandbox.
	guestDir = "/run/wrenn/bin"

	tokenBytes = 16

	// A guest may have a process for each 2 MiB of its memory, within these bounds. The
	// smallest process costs 0.6 MiB, a shell 1 MiB: a fork bomb runs into this limit,
	// inside the guest, before it fills the memory.
	memoryPerProcessMB = 2
	minProcesses       = 128
	maxProcesses       = 4096
)

// creation is a create under way: what the phases read and fill.
type creation struct {
	*entry
	req   CreateRequest
	image image.Image
	undo  []func(context.Context) error
	// took is how long each phase was, for the log.
	took []any
	// done is closed when the create is over; see entry.settled.
	done chan struct{}
}

// phase is a named step of a create. It registers the undo of what it took at once.
type phase struct {
	name string // for people, as in "create sandbox: NAME: what went wrong"
	key  string // for the log
	run  func(*Service, context.Context, *creation) error
}

// createPhases are the steps of a create, in order.
var createPhases = []phase{
	{"take a network slot", "slot", (*Service).takeSlot},
	{"start the runtime", "runtime", (*Service).startRuntime},
	{"wait for the guest", "guest", (*Service).awaitGuest},
}

// Create makes a sandbox and returns when it is usable. When it fails nothing is left.
func (s *Service) Create(ctx context.Context, req CreateRequest) (Sandbox, error) {
	im, err := s.check(req)
	if err != nil {
		return Sandbox{}, err
	}
	ctx, cancelTimeout := context.WithTimeout(ctx, createTimeout)
	defer cancelTimeout()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	c := &creation{req: req, image: im, done: make(chan struct{})}
	if c.entry, err = s.reserve(req, c.done, cancel); err != nil {
		return Sandbox{}, err
	}
	defer close(c.done)
	for _, p := range createPhases {
		began := time.Now()
		if err := p.run(s, ctx, c); err != nil {
			if ctx.Err() != nil {
				cause := context.Cause(ctx)
				err = fault.Wrap(err, fault.CodeOf(cause), "%s", fault.MessageOf(cause))
			}
			return Sandbox{}, s.abandon(ctx, c, fmt.Errorf("create sandbox: %s: %w", p.name, err))
		}
		c.took = append(c.took, p.key, time.Since(began).Round(100*time.Microsecond))
	}
	return s.publish(ctx, c)
}

// check refuses what cannot be made, before anything is taken.
func (s *Service) check(req CreateRequest) (image.Image, error) {
	if !idPattern.MatchString(req.ID) {
		return image.Image{}, fault.New(fault.InvalidRequest, "sandbox id %q must match %s", req.ID, idPattern)
	}
	for _, r := range []struct {
		name      string
		got, most int
	}{
		{"vcpus", req.Resources.VCPUs, s.cfg.Max.VCPUs},
		{"memory_mb", req.Resources.MemoryMB, s.cfg.Max.MemoryMB},
		{"disk_size_mb", req.Resources.DiskMB, s.cfg.Max.DiskMB},
	} {
		if r.got < 1 || r.got > r.most {
			return image.Image{}, fault.New(fault.InvalidRequest, "%s must be from 1 to %d on this host, not %d", r.name, r.most, r.got)
		}
	}
	if err := s.checkRoom(); err != nil {
		return image.Image{}, err
	}
	return s.cfg.Images.Lookup(req.Template)
}

// minFreeDisk is what the host's disk must have left for another sandbox, in bytes: its
// guests and its own database write to it, and a full one hurts all of them.
const minFreeDisk = 256 << 20

// checkRoom refuses creates while the disk is nearly full.
func (s *Service) checkRoom() error {
	var disk unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &disk); err != nil {
		return fmt.Errorf("read the room on the disk: %w", err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < minFreeDisk {
		return fault.New(fault.NoSpace, "the host's disk has %d MiB left, and another sandbox needs %d; delete sandboxes or make room on it", free>>20, minFreeDisk>>20)
	}
	return nil
}

// reserve makes the entry of a new sandbox, which keeps its id from others.
func (s *Service) reserve(req CreateRequest, done chan struct{}, cancel context.CancelCauseFunc) (*entry, error) {
	token := make([]byte, tokenBytes)
	if _, err := rand.Read(token); err != nil {
		return nil, err
	}
	e := &entry{
		sandbox: Sandbox{
			ID: req.ID, Status: Starting, Template: req.Template, Resources: req.Resources,
			Runtime: s.cfg.Runtime.Name(), CreatedAt: time.Now(),
		},
		token: hex.EncodeToString(token), settled: done, cancel: cancel,
	}
	s.mu.Lock()
	switch _, taken := s.entries[req.ID]; {
	case s.closed:
		s.mu.Unlock()
		return nil, fault.New(fault.HostUnavailable, "the host is stopping")
	case taken:
		s.mu.Unlock()
		return nil, fault.New(fault.Conflict, "sandbox %q exists already", req.ID)
	}
	s.entries[req.ID] = e
	s.mu.Unlock()
	s.set(e, func(*Sandbox) {})
	return e, nil
}

func (s *Service) takeSlot(ctx context.Context, c *creation) error {
	slot, err := s.cfg.Network.Acquire(ctx)
	if err != nil {
		return err
	}
	c.undo = append(c.undo, func(ctx context.Context) error { return s.cfg.Network.Release(ctx, slot) })
	c.slot, c.held = slot, true
	s.set(c.entry, func(sb *Sandbox) {
		sb.HostIP, sb.GuestIP = slot.Gateway.String(), slot.Guest.Addr().String()
	})
	return nil
}

func (s *Service) startRuntime(ctx context.Context, c *creation) error {
	r := c.req.Resources
	processes := min(max(r.MemoryMB/memoryPerProcessMB, minProcesses), maxProcesses)
	// Registered before the start: a start that was cut off may have left something.
	c.undo = append(c.undo, func(ctx context.Context) error { return s.cfg.Runtime.Destroy(ctx, c.req.ID) })
	return s.cfg.Runtime.Start(ctx, runtime.Spec{
		ID:        c.req.ID,
		Hostname:  c.req.ID,
		RootFS:    c.image.Path,
		Args:      []string{guestDir + "/envd", "--pids-max", strconv.Itoa(processes), "--forward-interface", "eth0"},
		Env:       []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Mounts:    []runtime.Mount{{Source: s.cfg.EnvdDir, Target: guestDir}},
		Namespace: c.slot.Namespace,
		Limits:    runtime.Limits{VCPUs: r.VCPUs, MemoryMB: r.MemoryMB, DiskMB: r.DiskMB, Processes: processes},
	})
}

func (s *Service) awaitGuest(ctx context.Context, c *creation) error {
	address := net.TCPAddr{IP: c.slot.Guest.Addr().AsSlice(), Port: guestclient.Port}
	guest := guestclient.New(&address, c.token)
	c.undo = append(c.undo, func(context.Context) error { guest.Close(); return nil })

	// A guest that dies while it boots never answers: end the wait with the sandbox.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.watchers.Go(func() {
		if _, err := s.cfg.Runtime.Wait(ctx, c.req.ID); err == nil {
			cancel(fault.New(fault.AgentError, "the sandbox ended while it was starting"))
		}
	})
	if err := guest.WaitReady(ctx); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	user := c.req.DefaultUser
	if user == "" {
		user = c.image.DefaultUser
	}
	err := guest.Init(ctx, guestclient.Init{
		AccessToken: c.token, SandboxID: c.req.ID, TemplateID: c.req.Template, Hostname: c.req.ID,
		Nameservers: []string{c.slot.Gateway.String()}, EnvVars: c.req.Env, DefaultUser: user, Timestamp: time.Now(),
	})
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	c.guest = guest
	return nil
}

// publish ends a create that went well, unless it was cancelled in its last moment.
func (s *Service) publish(ctx context.Context, c *creation) (Sandbox, error) {
	if err := context.Cause(ctx); err != nil {
		return Sandbox{}, s.abandon(ctx, c, err)
	}
	s.set(c.entry, func(sb *Sandbox) {
		sb.Status, sb.StartedAt, sb.LastActiveAt = Running, time.Now(), time.Now()
	})
	s.watchers.Go(func() { s.watch(c.entry) })
	// The answer is of now: a destroy may already be under way, and is not waited for.
	created, err := s.Get(c.req.ID)
	s.cfg.Log.Info("sandbox created", "sandbox", c.req.ID, "template", c.req.Template, slog.Group("took", c.took...))
	return created, err
}

// abandon undoes a create that failed, in reverse order, and forgets the sandbox.
func (s *Service) abandon(ctx context.Context, c *creation, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for i := len(c.undo) - 1; i >= 0; i-- {
		if undoErr := c.undo[i](ctx); undoErr != nil {
			// The record stays, so that the next start tries again.
			s.cfg.Log.Error("undo create", "sandbox", c.req.ID, "error", undoErr)
			s.finish(c.entry, Failed, "the create failed and could not be undone")
			return err
		}
	}
	c.held = false
	s.forget(c.entry)
	return err
}
