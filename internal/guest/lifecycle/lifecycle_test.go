package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds how long a test waits for something to come true.
const patience = 10 * time.Second

// journal writes down what the Lifecycle does to its parts.
type journal struct {
	mu      sync.Mutex
	entries []string
	fail    error // what Restart returns
	ctx     context.Context
}

func (j *journal) note(entry string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entry)
}

func (j *journal) Restart(ctx context.Context) error {
	j.ctx = ctx
	j.note("ports start")
	return j.fail
}
func (j *journal) Stop() { j.note("ports stop") }

func (j *journal) keepAlives(on bool) {
	if on {
		j.note("keep connections")
	} else {
		j.note("close connections")
	}
}

func (j *journal) want(t *testing.T, entries ...string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.entries, entries) {
		t.Errorf("done: %q, want %q", j.entries, entries)
	}
	j.entries = nil
}

func newLifecycle(sync func()) (*Lifecycle, *journal) {
	j := &journal{}
	return New(Config{Ports: j, KeepAlives: j.keepAlives, Sync: sync, Logger: slog.New(slog.DiscardHandler)}), j
}

func TestRestAndWake(t *testing.T) {
	var l *Lifecycle
	var j *journal
	l, j = newLifecycle(func() { j.note("sync") })
	rest := []string{"ports stop", "close connections", "sync"}
	for range 2 { // again does it again
		if err := l.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		j.want(t, rest...)
	}
	if err := l.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	j.want(t, "sync")
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		if err := l.Wake(ctx); err != nil {
			t.Fatal(err)
		}
		j.want(t, "keep connections", "ports start")
	}
	cancel()
	if j.ctx.Err() != nil {
		t.Error("the ports end with the request that started them")
	}
	j.fail = errors.New("no table")
	if err := l.Wake(t.Context()); !errors.Is(err, j.fail) {
		t.Errorf("wake: %v", err)
	}
	j.want(t, "keep connections", "ports start")
	l.Close()
	j.want(t, "ports stop")
	if err := l.Wake(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wake after close: %v", err)
	}
}

func TestPreparationsAreShared(t *testing.T) {
	began, release := make(chan struct{}, 10), make(chan struct{})
	l, j := newLifecycle(func() { began <- struct{}{}; <-release })
	prepared := make(chan error, 2)
	go func() { prepared <- l.Prepare(t.Context()) }()
	<-began
	// One who comes later shares it, one who goes away does not end it, and who wants the
	// daemon awake waits.
	shared := l.join(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Prepare(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := l.Wake(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	woken := make(chan error, 1)
	go func() { woken <- l.Wake(t.Context()) }()
	close(release)
	<-shared.done
	if err := errors.Join(shared.err, <-prepared, <-woken); err != nil {
		t.Error(err)
	}
	j.want(t, "ports stop", "close connections", "keep connections", "ports start")
	if len(began) > 0 {
		t.Error("synced more than once")
	}
}

func TestSyncThatHangs(t *testing.T) {
	began, release := make(chan struct{}, 10), make(chan struct{})
	l, _ := newLifecycle(func() { began <- struct{}{}; <-release })
	l.syncWait = 20 * time.Millisecond
	for range 3 {
		if err := l.Prepare(t.Context()); !fault.Is(err, fault.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}
	if len(began) != 1 {
		t.Errorf("%d syncs hang", len(began))
	}
	close(release)
	l.syncWait = patience
	if err := l.Prepare(t.Context()); err != nil {
		t.Error(err)
	}
}
