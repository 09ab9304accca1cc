package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// restore starts a sandbox from a checkpoint. What prepares it takes longer than most of
// what a caller may have to look at first, so both go on at the same time; the program
// waits for the cue between creating and restoring.
func (d *Driver) restore(ctx context.Context, spec runtime.Spec) error {
	if err := d.writeRestoreBundle(spec); err != nil {
		if spec.BeforeRestore != nil {
			// Who looks at all of it can say better what is wrong: a program or an image that
			// is not there may never have been meant.
			if found := spec.BeforeRestore(ctx); found != nil {
				return found
			}
		}
		return err
	}
	heard, cue, err := os.Pipe()
	if err != nil {
		return err
	}
	defer cue.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		defer heard.Close()
		done <- d.runsc(ctx, spec.ID, []*os.File{heard}, "create-and-restore", "--bundle="+d.bundle(spec.ID),
			"--pid-file="+d.pidFile(spec.ID), "--image-path="+spec.Checkpoint, "--detach", spec.ID)
		cancel(errCreateEnded)
	}()
	if spec.BeforeRestore != nil {
		if err := spec.BeforeRestore(ctx); err != nil {
			cancel(err)
			if ended := <-done; errors.Is(context.Cause(ctx), errCreateEnded) {
				return ended // it failed first, and that is why the caller was cut off
			}
			return err
		}
	}
	if err := d.liftCreated(ctx, spec.ID); err != nil {
		cancel(err)
		if ended := <-done; errors.Is(context.Cause(ctx), errCreateEnded) {
			return ended
		}
		return err
	}
	_, cueErr := cue.Write([]byte{1})
	err = <-done
	if err == nil {
		return nil
	}
	if d.cgroups.outOfMemory(spec.ID) {
		err = fault.Wrap(err, fault.HostUnavailable, "the sandbox ran out of memory while it was brought back: the host has too little left for "+
			"what its memory, files and connections need of it; what was written down of it is as it was. Delete or pause other sandboxes, and try again")
	}
	return errors.Join(err, cueErr)
}

// createdPoll is how often liftCreated looks.
const createdPoll = time.Millisecond

// liftCreated gives the sentry that is being created room for the restore, once it is there:
// its guest would see a limit that was lifted before as its memory.
func (d *Driver) liftCreated(ctx context.Context, id string) error {
	tick := time.NewTicker(createdPoll)
	defer tick.Stop()
	for {
		// It is written with the end of the creation.
		if _, err := os.Stat(d.pidFile(id)); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, d.memory.lift(id))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// errCreateEnded is why BeforeRestore is cut off when there is nothing left to wait for.
var errCreateEnded = errors.New("the sandbox could not be prepared")

// writeRestoreBundle makes the bundle of a sandbox that goes on from a checkpoint: what
// the first one was made of, but for what differs between two sandboxes. The sentry
// refuses a restore with other differences.
func (d *Driver) writeRestoreBundle(spec runtime.Spec) error {
	from, err := readOrigin(spec.Checkpoint)
	if err != nil {
		return damaged(err)
	}
	if _, err := d.programs.find(from.Program); err != nil {
		return err
	}
	image, err := imageSum(spec.RootFS)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, fault.InvalidState, "the image %s that this sandbox was made from is not there any more; put it back", spec.RootFS)
	}
	if err != nil {
		return err
	}
	if image != from.Image {
		return fault.New(fault.InvalidState, "the image %s is not the one that this sandbox was made from; put that one back", filepath.Base(spec.RootFS))
	}
	text, err := os.ReadFile(filepath.Join(spec.Checkpoint, configFile))
	if err != nil {
		return damaged(err)
	}
	var config specs.Spec
	if err := json.Unmarshal(text, &config); err != nil {
		return damaged(err)
	}
	if config.Linux == nil || config.Annotations[rootfsSource] == "" {
		return damaged(errors.New("its configuration is not one of ours"))
	}
	if err := d.linkAs(spec.RootFS, config.Annotations[rootfsSource]); err != nil {
		return err
	}
	root, err := d.makeBundle(spec.ID)
	if err != nil {
		return err
	}
	config.Hostname = spec.Hostname
	config.Root = &specs.Root{Path: root}
	config.Linux.CgroupsPath = d.cgroups.path(spec.ID)
	config.Linux.Resources = ociResources(spec.Limits, sentryMemoryMB+restoredMemoryMB)
	for i, ns := range config.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			config.Linux.Namespaces[i].Path = spec.Namespace
		}
	}
	for _, m := range spec.Mounts {
		if err := replaceMount(config.Mounts, m); err != nil {
			return err
		}
	}
	return d.finishBundle(spec.ID, from, &config)
}

// replaceMount gives a mount of the first sandbox the source that it has in this one.
func replaceMount(mounts []specs.Mount, m runtime.Mount) error {
	for i := range mounts {
		if mounts[i].Destination == m.Target {
			mounts[i].Source = m.Source
			return nil
		}
	}
	return fmt.Errorf("the checkpoint has no mount at %s", m.Target)
}

// errDamaged is why a checkpoint cannot be restored that is not as it was written.
var errDamaged = errors.New("damaged checkpoint")

func damaged(err error) error {
	return fault.Wrap(errors.Join(errDamaged, err), fault.Internal, "what was written down of the sandbox is damaged and was not used")
}

// rootfsSource is the annotation that names a sandbox's image.
const rootfsSource = "dev.gvisor.spec.rootfs.source"

// The sentry restores only with the very paths that the first sandbox had for its image
// and its overlay. So both go by links in RunDir, and the files themselves may be moved.
func (d *Driver) rootfsDir() string   { return filepath.Join(d.cfg.RunDir, "rootfs") }
func (d *Driver) overlayLink() string { return filepath.Join(d.cfg.RunDir, "overlays") }

// linkRootFS returns the path under which sandboxes know an image.
func (d *Driver) linkRootFS(image string) (string, error) {
	link := filepath.Join(d.rootfsDir(), filepath.Base(image))
	return link, d.linkAs(image, link)
}

// linkAs makes an image reachable under the path that a sandbox knows it by.
func (d *Driver) linkAs(image, link string) error {
	if filepath.Dir(link) != d.rootfsDir() {
		return fault.New(fault.InvalidState, "the snapshot was made by another server, which kept its images in %s", filepath.Dir(link))
	}
	return makeLink(image, link)
}

// makeLink makes a symbolic link, or turns one that is there, in one step.
func makeLink(target, link string) error {
	if now, err := os.Readlink(link); err == nil && now == target {
		return nil
	}
	dir, err := os.MkdirTemp(filepath.Dir(link), ".link-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	half := filepath.Join(dir, "link")
	if err := os.Symlink(target, half); err != nil {
		return err
	}
	if err := os.Rename(half, link); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link %s: %w", target, err)
	}
	return nil
}
