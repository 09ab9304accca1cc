package gvisor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// programs keeps the runsc programs that sandboxes need, each under the hash of its
// content: a checkpoint can be restored only by the very program that wrote it, and a
// running sandbox is driven best by the one that booted it. An upgrade replaces neither.
type programs struct{ dir string }

const (
	programName = "runsc"
	programMode = 0o755
	// halfPrefix begins the names of programs that are not whole yet.
	halfPrefix = "tmp-"
)

// keep makes sure of a copy of a program and returns its hash.
func (p programs) keep(binary string) (hash string, err error) {
	source, err := os.Open(binary)
	if err != nil {
		return "", err
	}
	defer source.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, source)
	if err != nil {
		return "", err
	}
	hash = hex.EncodeToString(sum.Sum(nil))
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return "", err
	}
	if err := p.removeHalves(); err != nil {
		return "", err
	}
	kept, err := os.Stat(p.path(hash))
	if err == nil && kept.Size() == size {
		return hash, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return hash, p.add(hash, source)
}

// add copies a program to its place, where it appears whole or not at all.
func (p programs) add(hash string, source io.Reader) (err error) {
	half, err := os.MkdirTemp(p.dir, halfPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(half))
		}
	}()
	file, err := os.OpenFile(filepath.Join(half, programName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, programMode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, source)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	// What stands there is damaged: it has not the size of this one.
	if err := os.RemoveAll(filepath.Join(p.dir, hash)); err != nil {
		return err
	}
	return os.Rename(half, filepath.Join(p.dir, hash))
}

func (p programs) removeHalves() error {
	halves, err := filepath.Glob(filepath.Join(p.dir, halfPrefix+"*"))
	for _, half := range halves {
		err = errors.Join(err, os.RemoveAll(half))
	}
	return err
}

func (p programs) path(hash string) string { return filepath.Join(p.dir, hash, programName) }

// find returns the path of a kept program.
func (p programs) find(hash string) (string, error) {
	path := p.path(hash)
	if _, err := os.Stat(path); err != nil {
		return "", fault.Wrap(err, fault.HostUnavailable,
			"the runtime that this sandbox was saved with (runsc %.12s) is not on this host any more; put it back as %s", hash, path)
	}
	return path, nil
}

// remove removes all programs but those with these hashes.
func (p programs) remove(except map[string]bool) error {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !except[e.Name()] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(p.dir, e.Name())))
		}
	}
	return err
}

// program returns the path of the runsc that drives a sandbox.
func (d *Driver) program(id string) string {
	from, err := readOrigin(d.bundle(id))
	if err != nil {
		return d.programs.path(d.current) // there is no bundle (any more)
	}
	path, err := d.programs.find(from.Program)
	if err != nil {
		d.cfg.Log.Warn("the runsc that started a sandbox is gone; using the current one", "sandbox", id, "error", err)
		return d.programs.path(d.current)
	}
	return path
}

// RemovePrograms removes the copies of runsc that nothing needs: neither a sandbox that is
// here, nor one of the checkpoints in these directories, nor what is started next. The
// caller starts and saves no sandbox meanwhile. A checkpoint whose program cannot be told
// is an error, and nothing is removed.
func (d *Driver) RemovePrograms(checkpoints []string) error {
	needed := map[string]bool{d.current: true}
	for _, dir := range checkpoints {
		from, err := readOrigin(dir)
		if err != nil {
			return fmt.Errorf("find the program of checkpoint %s: %w", dir, err)
		}
		needed[from.Program] = true
	}
	bundles, err := os.ReadDir(d.bundlesDir())
	if err != nil {
		return err
	}
	for _, e := range bundles {
		from, err := readOrigin(d.bundle(e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has not been written: nothing runs of it
		}
		if err != nil {
			return err
		}
		needed[from.Program] = true
	}
	return d.programs.remove(needed)
}
