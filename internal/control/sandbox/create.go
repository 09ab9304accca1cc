package sandbox

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// What a sandbox gets when its creator does not say.
const (
	DefaultTemplate = "base"
	DefaultVCPUs    = 1
	DefaultMemoryMB = 512
	DefaultDiskMB   = 10240
)

// Options is what the creator of a sandbox may say. Zero values are the defaults.
type Options struct {
	Template  string
	Resources Resources
	Timeout   time.Duration
	Deadline  time.Duration
	OnTimeout OnTimeout
	Env       map[string]string
	User      string
	Metadata  map[string]string
	Web       WebOptions
	Wait      time.Duration // how long to wait for room on a full host, at most
}

// withDefaults returns o with what was not said, as far as the host has it: nobody is
// refused for what they did not ask. A limit of 0 is not known.
func (o Options) withDefaults(limit Resources) Options {
	def := func(v *int, d, most int) {
		if *v == 0 {
			*v = d
			if most > 0 {
				*v = min(d, most)
			}
		}
	}
	def(&o.Resources.VCPUs, DefaultVCPUs, limit.VCPUs)
	def(&o.Resources.MemoryMB, DefaultMemoryMB, limit.MemoryMB)
	def(&o.Resources.DiskMB, DefaultDiskMB, limit.DiskMB)
	if o.Template == "" {
		o.Template = DefaultTemplate
	}
	if o.OnTimeout == "" {
		o.OnTimeout = Pause
	}
	return o
}

// Create makes a sandbox and answers when it is usable. When ctx ends before that, or
// anything fails, nothing of it is left.
func (s *Service) Create(ctx context.Context, o Options) (Sandbox, error) {
	host, err := s.hostInfo.get(ctx, s.host)
	if err != nil {
		return Sandbox{}, err
	}
	from, err := s.snapshots.resolve(ctx, o.Template, host)
	if err != nil {
		return Sandbox{}, err
	}
	if from.ID != "" {
		if o.Resources, err = from.sized(o.Resources); err != nil {
			return Sandbox{}, err
		}
		o.Template = from.Name
		done, ok := s.snapshots.uses.begin(from.ID)
		if !ok {
			return Sandbox{}, fault.New(fault.NotFound, "snapshot %q is just being removed: it is older than this server keeps them, or one too many", from.Name)
		}
		defer done()
	}
	o = o.withDefaults(host.Max)
	if err := o.validate(); err != nil {
		return Sandbox{}, err
	}
	if err := o.Resources.within(host.Max); err != nil {
		return Sandbox{}, err
	}

	now := now()
	sb := Sandbox{
		ID: newID(), Status: Starting, Template: o.Template, Resources: o.Resources,
		Timeout: o.Timeout, Deadline: o.Deadline, DeadlineFrom: now, OnTimeout: o.OnTimeout,
		Runtime: host.Runtime, HostID: host.ID, Metadata: o.Metadata, Web: o.Web.settings(),
		CreatedAt: now, UpdatedAt: now,
	}
	defer s.claim(ctx, sb.ID)()
	if err := s.store.Insert(ctx, sb); err != nil {
		return Sandbox{}, err
	}
	if err := s.start(ctx, &sb, o, from.ID); err != nil {
		s.undoCreate(ctx, sb.ID)
		if from.ID != "" && fault.Is(err, fault.Internal) {
			s.snapshots.recheck(ctx)
		}
		return Sandbox{}, err
	}
	s.rearmClocks()
	return sb, nil
}

// start has the host make sb and writes down what came of it.
func (s *Service) start(ctx context.Context, sb *Sandbox, o Options, snapshotID string) error {
	made, err := s.host.Create(ctx, Spec{
		ID: sb.ID, Template: sb.Template, Resources: sb.Resources, Env: o.Env, User: o.User,
		SnapshotID: snapshotID, Wait: o.Wait,
	})
	if err != nil {
		return err
	}
	if err := s.started(ctx, sb, made); err != nil {
		return err
	}
	// A client that has gone never learns the id, so nobody would ever delete it.
	return ctx.Err()
}

// started writes down that a sandbox that was Starting runs.
func (s *Service) started(ctx context.Context, sb *Sandbox, made HostSandbox) error {
	now := now()
	sb.Status, sb.HostIP, sb.GuestIP = Running, made.HostIP, made.GuestIP
	sb.StartedAt, sb.LastActiveAt, sb.UpdatedAt = made.StartedAt, now, now
	if sb.StartedAt.IsZero() {
		sb.StartedAt = now
	}
	if made.Runtime != "" {
		sb.Runtime = made.Runtime
	}
	ok, err := s.store.Save(ctx, *sb, Starting)
	if err != nil {
		return err
	}
	if !ok {
		return fault.New(fault.Conflict, "sandbox %q was deleted while it started", sb.ID)
	}
	return nil
}

// undoCreate removes what a failed create may have left, even when its client has gone.
func (s *Service) undoCreate(ctx context.Context, id string) {
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := s.remove(ctx, id); err != nil {
		s.log.ErrorContext(ctx, "could not remove a sandbox whose creation failed", "sandbox", id, "error", err)
	}
}

const (
	idPrefix   = "sb"
	idLength   = 20
	idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// newID returns an id that is DNS-safe and cannot be guessed (103 bits).
func newID() string { return idPrefix + randomName(idLength) }

// randomName returns n characters of the id alphabet, each as likely as the others.
func randomName(n int) string {
	// Bytes at or above the largest multiple of the alphabet's length would favour its
	// first letters.
	const fair = 256 - 256%len(idAlphabet)
	var b strings.Builder
	var buf [64]byte
	for b.Len() < n {
		_, _ = rand.Read(buf[:]) // never fails: it ends the program instead
		for _, c := range buf {
			if int(c) < fair && b.Len() < n {
				b.WriteByte(idAlphabet[int(c)%len(idAlphabet)])
			}
		}
	}
	return b.String()
}
