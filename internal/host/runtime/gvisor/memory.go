package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/meminfo"
)

// memoryLimits lifts the memory limits of sandboxes for as long as their sentries write
// them down or bring them back, and lowers them again.
//
// For that a sentry needs some 7 KB of its own for each file and socket of its guest, in
// the cgroup that the guest's memory is in: with many files more than the guest may have
// altogether. The guest stands still meanwhile, so that what is lifted is the sentry's
// alone; and it gives memory back slowly, so that what it may have comes down as it does.
//
// What a limit was is kept in a file beside the bundle, for whoever comes after a process
// that died in between. It is safe for concurrent use.
type memoryLimits struct {
	cgroups cgroups
	bundles string
	log     *slog.Logger
	// available returns what the machine has left, in bytes.
	available func() (uint64, error)

	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	mu sync.Mutex
	// lowering has the sandboxes whose limits are being lowered.
	lowering map[string]bool
}

// lifted is what is kept of a limit that is lifted.
type lifted struct {
	// Limit is what it was, in bytes.
	Limit uint64 `json:"limit"`
	// Sentry is what the sentry had of it for itself, in bytes.
	Sentry uint64 `json:"sentry"`
}

const (
	liftedFile = "memory.json"

	// liftPart is the part of the machine's available memory by which a limit is lifted, one
	// in so many, once what others have been lifted by and have not taken yet is put aside:
	// several sandboxes may be written down at once, and all of them together must leave
	// something to the agent and to guests, or the machine's kernel would choose who goes.
	liftPart = 2
	// lowerSlack is how far above what a sandbox uses a limit stays, in bytes, that cannot be
	// what it was yet: to write one below the usage makes the kernel kill, under cgroup v2.
	lowerSlack = 16 * mib

	lowerWait     = 250 * time.Millisecond // before the second attempt; doubles
	lowerWaitMost = 10 * time.Second
)

func newMemoryLimits(c cgroups, bundles string, log *slog.Logger) *memoryLimits {
	life, end := context.WithCancel(context.Background())
	return &memoryLimits{
		cgroups: c, bundles: bundles, log: log, available: meminfo.Available, life: life, end: end, lowering: map[string]bool{},
	}
}

func (l *memoryLimits) mark(id string) string { return filepath.Join(l.bundles, id, liftedFile) }

// lift gives a sandbox's sentry room until lower. It may be called again before that.
func (l *memoryLimits) lift(id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		err = l.note(id)
	}
	if err != nil {
		return fmt.Errorf("lift the memory limit: %w", err)
	}
	now, err := l.cgroups.memoryLimit(id) // it may not have come down yet from the last time
	if err != nil {
		return err
	}
	available, err := l.available()
	if err != nil {
		return err
	}
	available -= min(available, l.promised())
	return l.cgroups.setMemoryLimit(id, now+available/liftPart)
}

// promised returns how much the sentries of all sandboxes whose limits are lifted may still
// take, in bytes. The caller holds l.mu.
func (l *memoryLimits) promised() uint64 {
	var sum uint64
	for _, id := range l.marked() {
		was, err := l.read(id)
		if err != nil {
			continue // it has ended meanwhile, or is done
		}
		limit, err := l.cgroups.memoryLimit(id)
		if err != nil {
			continue
		}
		sentry, err := l.cgroups.sentryMemory(id)
		if err != nil {
			continue
		}
		sum += notTaken(was, limit, sentry)
	}
	return sum
}

// notTaken is how much of what a limit was lifted by is left to the sentry.
func notTaken(was lifted, limit, sentry uint64) uint64 {
	given := limit - min(limit, was.Limit)
	taken := sentry - min(sentry, was.Sentry)
	return given - min(given, taken)
}

// marked returns the sandboxes whose limits are lifted.
func (l *memoryLimits) marked() []string {
	marks, _ := filepath.Glob(l.mark("*")) // the pattern is a good one
	ids := make([]string, len(marks))
	for i, mark := range marks {
		ids[i] = filepath.Base(filepath.Dir(mark))
	}
	return ids
}

// note keeps what a limit is before it is lifted.
func (l *memoryLimits) note(id string) error {
	limit, err := l.cgroups.memoryLimit(id)
	if err != nil {
		return err
	}
	sentry, err := l.cgroups.sentryMemory(id)
	if err != nil {
		return err
	}
	data, err := json.Marshal(lifted{Limit: limit, Sentry: max(sentry, (sentryMemoryMB+restoredMemoryMB)*mib)})
	if err != nil {
		return err
	}
	return atomicfile.Write(l.mark(id), data, stateMode)
}

func (l *memoryLimits) read(id string) (was lifted, err error) {
	data, err := os.ReadFile(l.mark(id))
	if err != nil {
		return was, err
	}
	err = json.Unmarshal(data, &was)
	return was, err
}

// lower takes back what lift gave, now as far as the sentry has given it back, and the rest
// in the background. A limit that is not lifted is left alone.
func (l *memoryLimits) lower(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if done := l.step(id); done || l.lowering[id] || l.life.Err() != nil {
		return // whoever is at it already finds out
	}
	l.lowering[id] = true
	l.work.Go(func() { l.lowerOn(id) })
}

// lowerAll goes on with what an earlier process has lifted.
func (l *memoryLimits) lowerAll() {
	for _, id := range l.marked() {
		l.lower(id)
	}
}

func (l *memoryLimits) lowerOn(id string) {
	for wait := lowerWait; ; wait = min(2*wait, lowerWaitMost) {
		select {
		case <-l.life.Done():
			return
		case <-time.After(wait):
		}
		l.mu.Lock()
		done := l.step(id)
		if done {
			delete(l.lowering, id)
		}
		l.mu.Unlock()
		if done {
			return
		}
	}
}

// close leaves the rest to the next process.
func (l *memoryLimits) close() {
	l.end()
	l.work.Wait()
}

// step lowers a limit as far as it can be, and says whether nothing is left to do. The
// caller holds l.mu.
func (l *memoryLimits) step(id string) (done bool) {
	if _, err := os.Stat(filepath.Join(l.bundles, id, freezeFile)); err == nil {
		return false // it is being written down; its thaw comes first
	}
	was, err := l.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return true // it has ended, or is done
	}
	var want uint64
	if err == nil {
		want, err = l.aim(id, was)
	}
	if err == nil {
		err = l.cgroups.setMemoryLimit(id, want)
	}
	switch {
	case errors.Is(err, unix.EBUSY): // more is used than the kernel can take back
		return false
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return true
	case err != nil:
		l.log.Error("lower a sandbox's memory limit", "sandbox", id, "error", err)
		return false
	case want > was.Limit:
		return false
	}
	if err := os.Remove(l.mark(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Error("note that a sandbox's memory limit is what it was", "sandbox", id, "error", err)
	}
	return true
}

// aim returns what a lifted limit can be now.
func (l *memoryLimits) aim(id string, was lifted) (uint64, error) {
	sentry, err := l.cgroups.sentryMemory(id)
	if err != nil {
		return 0, err
	}
	gauge, err := l.cgroups.gauge(id)
	if err != nil {
		return 0, err
	}
	defer gauge.close()
	used, err := gauge.memoryBytes()
	if err != nil {
		return 0, err
	}
	now, err := l.cgroups.memoryLimit(id)
	if err != nil {
		return 0, err
	}
	return min(now, lowered(was, used, sentry)), nil
}

// lowered is what a lifted limit can be while so much is used, some of it by the sentry: the
// guest has what it had, and the sentry what it has not given back yet. That may be never,
// of a restored one with many files: better than to take it from the guest.
func lowered(was lifted, used, sentry uint64) uint64 {
	limit := was.Limit
	if sentry > was.Sentry {
		limit += sentry - was.Sentry
	}
	if used > limit {
		limit = used + lowerSlack
	}
	return limit
}

// memoryLimit returns the memory limit of a sandbox, in bytes.
func (c cgroups) memoryLimit(id string) (uint64, error) {
	data, err := os.ReadFile(c.memoryLimitFile(id))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

// setMemoryLimit fails with EBUSY when more is used, under cgroup v1. Under v2 the kernel
// kills instead.
func (c cgroups) setMemoryLimit(id string, limit uint64) error {
	return os.WriteFile(c.memoryLimitFile(id), []byte(strconv.FormatUint(limit, 10)), 0)
}

func (c cgroups) memoryLimitFile(id string) string {
	if c.v2 {
		return c.file("memory", id, "memory.max")
	}
	return c.file("memory", id, "memory.limit_in_bytes")
}

// sentryMemory returns what of a sandbox's memory is the sentry's own, in bytes. The guest's
// is a file's, also when it is no file's to the guest.
func (c cgroups) sentryMemory(id string) (uint64, error) {
	name := "total_rss"
	if c.v2 {
		name = "anon"
	}
	counts, err := c.counters("memory", id, "memory.stat", name)
	if err != nil {
		return 0, err
	}
	return counts[0], nil
}
