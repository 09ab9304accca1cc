package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Draft is a snapshot that is being written. It ends with Commit or Abort; until then it
// is seen by nobody, and gone when the process dies. Its methods are called one at a time.
type Draft struct {
	store  *Store
	id     string
	dir    string
	expect int64
	done   bool
	quiet  func() // ends what SendEarly began, and returns when it has ended
}

// Draft begins a snapshot with an id that is not in use. expect is about how many bytes it
// will take, 0 when nobody knows: when the disk clearly has not so much room beside the
// other drafts, the error is fault.NoSpace, before anybody has been stopped for it.
func (s *Store) Draft(ctx context.Context, id string, expect int64) (*Draft, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !validID.MatchString(id) {
		return nil, fault.New(fault.InvalidRequest, "%q cannot be the id of a snapshot: use 1 to 64 of a-z, 0-9 and dash", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept[id] != nil || s.drafts[id] != nil {
		return nil, fault.New(fault.Conflict, "there is a snapshot %s already", id)
	}
	if err := s.checkRoom(expect); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.dir, draftPrefix+id+"-")
	if err != nil {
		return nil, noSpace(err, "begin a snapshot")
	}
	if err := os.Mkdir(filepath.Join(dir, stateName), dirMode); err != nil {
		return nil, noSpace(errors.Join(err, os.Remove(dir)), "begin a snapshot")
	}
	d := &Draft{store: s, id: id, dir: dir, expect: expect, quiet: func() {}}
	s.drafts[id] = d
	return d, nil
}

// checkRoom looks whether expect bytes fit on the disk, beside what other drafts have still
// to write. s.mu is held.
func (s *Store) checkRoom(expect int64) error {
	if expect <= 0 {
		return nil
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(s.dir, &disk); err != nil {
		return fmt.Errorf("look for room for a snapshot: %w", err)
	}
	room := int64(disk.Bavail) * disk.Bsize
	for _, d := range s.drafts {
		written, err := diskUsage(d.dir)
		if err != nil {
			continue // it is being aborted just now
		}
		room -= max(d.expect-written, 0)
	}
	if expect > room {
		const mib = 1 << 20
		return fault.New(fault.NoSpace, "the host's disk has no room for the snapshot: it needs about %d MiB and %d are free; remove snapshots or paused sandboxes",
			expect/mib, max(room, 0)/mib)
	}
	return nil
}

// noSpace makes a full disk a fault of its own, and anything else an error of that action.
func noSpace(err error, action string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Wrap(err, fault.NoSpace, "the host's disk is full; remove snapshots or paused sandboxes")
	}
	return fmt.Errorf("%s: %w", action, err)
}

// Dir is the empty directory for the runtime to write into: plain files, nothing else.
func (d *Draft) Dir() string { return filepath.Join(d.dir, stateName) }

// Commit makes the draft a snapshot. When it returns without an error the snapshot has
// reached the disk, unless it is a Fork; otherwise there is none, and the draft is there for
// Abort.
func (d *Draft) Commit(ctx context.Context, m Manifest) (Snapshot, error) {
	if d.done {
		return Snapshot{}, fault.New(fault.InvalidState, "the draft of snapshot %s has ended", d.id)
	}
	d.quiet()
	c := &commit{draft: d, manifest: m}
	for _, p := range c.phases() {
		if err := p.run(ctx); err != nil {
			return Snapshot{}, noSpace(err, "write snapshot "+d.id+": "+p.name)
		}
	}
	d.done = true
	return c.snapshot(), nil
}

// Abort removes a draft. After Commit, and a second time, it does nothing.
func (d *Draft) Abort() error {
	if d.done {
		return nil
	}
	d.quiet()
	if err := os.RemoveAll(d.dir); err != nil {
		return fmt.Errorf("remove the draft of snapshot %s: %w", d.id, err)
	}
	d.done = true
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	delete(d.store.drafts, d.id)
	return nil
}

// commit is a draft on its way to be a snapshot.
type commit struct {
	draft    *Draft
	manifest Manifest
	bytes    int64
}

// phase is one step of a commit.
type phase struct {
	name string
	run  func(context.Context) error
}

// phases are the steps in their order. A process that dies after any of them leaves a draft
// or the whole snapshot: only the publishing makes it one, when all of it is on the disk.
func (c *commit) phases() []phase {
	if !c.manifest.Kind.lasts() {
		return []phase{
			{"look at its files", c.inspect},
			{"write its manifest", c.describe},
			{"see how large it is", c.weigh},
			{"publish", c.publish},
			{"list it", c.list},
		}
	}
	return []phase{
		{"look at its files", c.inspect},
		{"checksum and sync its files", c.seal},
		{"write its manifest", c.describe},
		{"sync its directory", func(context.Context) error { return syncDirectory(c.draft.Dir()) }},
		{"see how large it is", c.weigh},
		{"publish", c.publish},
		{"sync the directory of snapshots", c.syncStore},
		{"list it", c.list},
	}
}

// inspect lists the runtime's files.
func (c *commit) inspect(context.Context) error {
	entries, err := os.ReadDir(c.draft.Dir())
	if err != nil {
		return err
	}
	c.manifest.Version, c.manifest.ID, c.manifest.Files = version, c.draft.id, nil
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a plain file", e.Name())
		}
		file := File{Name: e.Name(), Size: info.Size()}
		if c.manifest.Kind.lasts() {
			file.CRC32C = make([]uint32, pieces(info.Size()))
		}
		c.manifest.Files = append(c.manifest.Files, file)
	}
	return checkFiles(c.manifest.Kind, c.manifest.Files)
}

// seal computes the checksums, from the page cache where the files still are, while they
// are on their way to the disk.
func (c *commit) seal(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	for i := range c.manifest.Files {
		f := &c.manifest.Files[i]
		file, err := openPlain(filepath.Join(c.draft.Dir(), f.Name))
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		opened = append(opened, file)
		g.Go(file.Sync)
		c.draft.store.sums.file(gctx, g, file, f.Size, func(piece int64, sum uint32) error {
			f.CRC32C[piece] = sum
			return nil
		})
	}
	return g.Wait()
}

func (c *commit) describe(context.Context) error {
	if c.manifest.CreatedAt.IsZero() {
		c.manifest.CreatedAt = time.Now()
	}
	data, err := c.manifest.encode()
	if err != nil {
		return err
	}
	if len(data) > maxManifest {
		return fault.New(fault.InvalidRequest, "the sandbox's environment is too large for a snapshot")
	}
	write := atomicfile.Write
	if c.manifest.Kind.lasts() {
		write = atomicfile.WriteDurable // which syncs the draft's own directory too
	}
	return write(filepath.Join(c.draft.dir, manifestName), data, fileMode)
}

func (c *commit) weigh(context.Context) error {
	bytes, err := diskUsage(c.draft.dir)
	c.bytes = bytes
	return err
}

// publish gives the draft its name. Nobody sees it before it is known to last.
func (c *commit) publish(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return os.Rename(c.draft.dir, c.draft.store.path(c.draft.id))
}

func (c *commit) syncStore(context.Context) error {
	s, d := c.draft.store, c.draft
	if err := syncDirectory(s.dir); err != nil {
		// Whether the name is on the disk is not known: take it back, and Abort removes it.
		return errors.Join(err, os.Rename(s.path(d.id), d.dir))
	}
	return nil
}

// list lets everybody see it.
func (c *commit) list(context.Context) error {
	s, d := c.draft.store, c.draft
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.drafts, d.id)
	s.kept[d.id] = &kept{snapshot: c.snapshot()}
	return nil
}

func (c *commit) snapshot() Snapshot {
	m := c.manifest
	m.Files = slices.Clone(m.Files)
	return Snapshot{Manifest: m, Bytes: c.bytes}
}

func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
