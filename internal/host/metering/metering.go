// Package metering keeps what sandboxes have used: often for the last minutes, seldom for
// the last day, across pauses and restarts of the agent. It must not know how use is
// measured, or what a sandbox is.
package metering

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

const (
	// sampleEvery is how often all sandboxes are looked at.
	sampleEvery = 500 * time.Millisecond
	// writeEvery is how old a history is at least when it is written to the disk again; with
	// many sandboxes it takes as long again until each has had its turn. A crash loses that.
	writeEvery = 30 * time.Second
	// patience is how long one sandbox may take to tell what it uses; one that takes longer
	// is left alone for a while, since the others wait for it.
	patience  = 200 * time.Millisecond
	leftAlone = 10 * time.Second

	suffix   = ".metrics"
	dirMode  = 0o700
	fileMode = 0o600
)

// Point is what a sandbox used at a time, or in the step that ended then: the mean of the
// cpu and of the network's rates, the most memory and processes, the latest of what is left.
type Point struct {
	Time time.Time
	// CPUPct is of one processor: a sandbox that keeps two busy uses 200.
	CPUPct      float64
	MemoryBytes uint64
	DiskBytes   uint64
	Processes   int
	// SentBytes and ReceivedBytes are since the sandbox was made, but for what went while
	// nobody measured. The rates are in bits per second.
	SentBytes, ReceivedBytes uint64
	SentRate, ReceivedRate   float64
	// Limits are the latest that are known, also of points of long ago.
	Limits Limits
}

// Limits is the most that a sandbox may use; zeroes: there is no limit, or none is known.
type Limits struct {
	CPUPct                 float64
	MemoryBytes, DiskBytes uint64
	Processes              int
	NetworkBitsPerSecond   uint64 // each way
}

// Use is what a running sandbox uses and may use.
type Use struct {
	runtime.Usage
	// SentBytes and ReceivedBytes only ever grow, but for a resume, which may begin anew.
	SentBytes, ReceivedBytes uint64
	Limits                   Limits
}

// Usage tells what a running sandbox uses, as cheaply as runtime.Meter does.
type Usage func(ctx context.Context, id string) (Use, error)

// Meter samples the sandboxes that it is told to track. Its methods are safe for concurrent
// use; for one id they come one at a time, but for Range.
type Meter struct {
	dir   string
	usage Usage
	log   *slog.Logger

	mu      sync.Mutex
	tracked map[string]*tracked
}

// tracked is one sandbox that is sampled.
type tracked struct {
	id string

	mu     sync.Mutex
	ended  bool // no sample counts any more
	series *series

	// Only the loop reads and writes what follows.
	base      Use       // of the latest sample
	baseAt    time.Time // zero: there is none yet
	written   time.Time
	skipUntil time.Time
	failed    bool // whether the latest look failed, so that it is logged once
}

// New returns a Meter that keeps its histories in dir, which is made when it is not there.
func New(dir string, usage Usage, log *slog.Logger) (*Meter, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("make the directory of metrics: %w", err)
	}
	half, err := filepath.Glob(filepath.Join(dir, atomicfile.Pattern))
	if err != nil {
		return nil, err
	}
	for _, path := range half {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove half-written metrics: %w", err)
		}
	}
	return &Meter{dir: dir, usage: usage, log: log, tracked: map[string]*tracked{}}, nil
}

func (m *Meter) path(id string) string { return filepath.Join(m.dir, id+suffix) }

// Track begins to sample a sandbox that runs, after the history that there is of it. To
// track it again means that it was started anew.
func (m *Meter) Track(id string) {
	if err := m.Untrack(id); err != nil {
		m.log.Warn("cannot write metrics", "sandbox", id, "error", err)
	}
	t := &tracked{id: id, series: m.load(id), written: time.Now()}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tracked[id] = t
}

// load reads a history; one that cannot be read begins anew, since no sandbox should fail
// for its metrics.
func (m *Meter) load(id string) *series {
	data, err := os.ReadFile(m.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return newSeries()
	}
	var s *series
	if err == nil {
		s, err = decode(data)
	}
	if err != nil {
		m.log.Warn("cannot read metrics", "sandbox", id, "error", err)
		return newSeries()
	}
	return s
}

// Untrack ends the sampling of a sandbox and keeps its history on the disk. One that is not
// tracked is no error.
func (m *Meter) Untrack(id string) error {
	t := m.take(id)
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	return m.write(t)
}

// Forget ends the sampling of a sandbox and removes its history. An unknown id is no error.
func (m *Meter) Forget(id string) error {
	if t := m.take(id); t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.ended = true
	}
	if err := os.Remove(m.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove metrics: %w", err)
	}
	return nil
}

// Retain removes the histories of sandboxes that keep does not want and that are not
// tracked.
func (m *Meter) Retain(keep func(id string) bool) error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("list metrics: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), suffix); ok && m.find(id) == nil && !keep(id) {
			errs = append(errs, m.Forget(id))
		}
	}
	return errors.Join(errs...)
}

// Range returns what a sandbox used in the time d until now, oldest first, one point for
// each 500 ms up to 10 minutes, each 30 s up to 2 hours and each 5 min up to 24 hours. There
// is no point for when it did not run. A sandbox of which nothing is known has none.
func (m *Meter) Range(id string, d time.Duration) ([]Point, error) {
	now := time.Now()
	if t := m.find(id); t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.series.since(now.Add(-d), now), nil
	}
	data, err := os.ReadFile(m.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	s, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("read metrics of %s: %w", id, err)
	}
	return s.since(now.Add(-d), now), nil
}

func (m *Meter) find(id string) *tracked {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tracked[id]
}

func (m *Meter) take(id string) *tracked {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tracked[id]
	delete(m.tracked, id)
	return t
}

// write puts a history on the disk in one step. t.mu is held.
func (m *Meter) write(t *tracked) error {
	if err := atomicfile.Write(m.path(t.id), t.series.encode(), fileMode); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	return nil
}
