package sandbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// modelOps is how many operations a run of the model test has; WRENN_TEST_OPS makes it
	// another number, such as thousands.
	modelOps = 160
	// modelRound is how many of them there are at most, at the same time, between two looks at
	// everything. Every second round is of one: what breaks there is that one's fault.
	modelRound   = 8
	modelWorkers = 4
	// modelSandboxes bounds how many sandboxes there are.
	modelSandboxes = 6
)

// model is what must be true of the sandboxes of a host, whatever was done to them.
type model struct {
	w     world
	h     *host
	tally *tally

	mu     sync.Mutex
	random *rand.Rand
	n      int
	// disturbed are the sandboxes whose state may be an older one: their sentry was killed.
	disturbed map[string]bool
}

// expected are the errors of operations that come at the wrong time.
func expected(err error) bool {
	for _, code := range []fault.Code{fault.InvalidState, fault.NotFound, fault.Conflict, fault.AgentError} {
		if fault.Is(err, code) {
			return true
		}
	}
	return err == nil
}

func (m *model) pick(from []string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(from) == 0 {
		return "sbnone0000000000000000"
	}
	slices.Sort(from)
	return from[m.random.IntN(len(from))]
}

func (m *model) newID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n++
	return fmt.Sprintf("sb%020d", m.n)
}

func (m *model) snapshots() []string {
	var ids []string
	for _, snap := range m.h.Snapshots().List() {
		ids = append(ids, snap.ID)
	}
	return ids
}

// step does something, and returns what it was and how it went.
func (m *model) step(ctx context.Context) (string, error) {
	m.mu.Lock()
	dice := m.random.IntN(100)
	m.mu.Unlock()
	all := m.h.ids(statuses...)
	id := m.pick(all)
	crowded := len(all) >= modelSandboxes
	switch {
	case dice < 20 && !crowded:
		id = m.newID()
		_, err := m.h.Create(ctx, small(id))
		if err == nil {
			err = m.h.counting(ctx, id)
		}
		return "create " + id, err
	case dice < 25 && !crowded:
		id, snap := m.newID(), m.pick(m.snapshots())
		_, err := m.h.Create(ctx, CreateRequest{ID: id, Snapshot: snap})
		return "create " + id + " from " + snap, err
	case dice < 45:
		_, err := m.h.Pause(ctx, id)
		return "pause " + id, err
	case dice < 68:
		_, err := m.h.Resume(ctx, id, 0)
		return "resume " + id, err
	case dice < 75:
		m.mu.Lock()
		m.n++
		snap := fmt.Sprintf("sn%020d", m.n)
		m.mu.Unlock()
		_, err := m.h.Snapshots().Create(ctx, id, snap)
		return "snapshot " + id + " to " + snap, err
	case dice < 80:
		snap := m.pick(m.snapshots())
		return "delete " + snap, m.h.Snapshots().Delete(ctx, snap)
	case dice < 85 && !crowded:
		copies := []string{m.newID(), m.newID()}
		_, err := m.h.Snapshots().Fork(ctx, id, copies)
		return fmt.Sprintf("fork %s to %v", id, copies), err
	case dice < 90:
		m.mu.Lock()
		m.disturbed[id] = true
		m.mu.Unlock()
		pid, err := m.w.sentryPID(id)
		if err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return "kill the sentry of " + id, nil
	}
	return "destroy " + id, m.h.Destroy(ctx, id)
}

// A host under random operations from several sides, whose agent is stopped now and then,
// keeps what it has promised. (What is left of an agent that is killed: the fault table.)
func TestModelForReal(t *testing.T) {
	ops := modelOps
	if text := os.Getenv("WRENN_TEST_OPS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		ops = n
	}
	if testing.Short() {
		ops = modelRound * 2
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("WRENN_TEST_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("WRENN_TEST_SEED=%d", seed)
	w := newWorld(t)
	m := &model{w: w, h: w.mustOpen(t), random: rand.New(rand.NewPCG(seed, seed)), disturbed: map[string]bool{}}
	m.tally = newTally(m.h)
	defer func() { w.end(t, m.h) }()
	for done := 0; done < ops && !t.Failed(); done += 1 + modelRound {
		m.round(t, 1, 1)
		m.round(t, modelWorkers, modelRound/modelWorkers)
	}
}

// round has several workers do some operations each at the same time, perhaps lets the agent
// begin anew, and looks.
func (m *model) round(t *testing.T, workers, each int) {
	ctx := context.WithoutCancel(t.Context())
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				began := time.Now()
				what, err := m.step(ctx)
				t.Logf("%s (%v): %v", what, time.Since(began).Round(time.Millisecond), err)
				if !expected(err) && !m.isDisturbed(what) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
	wg.Wait()
	for id := range m.disturbed { // its end is seen in a moment
		m.h.settled(t, id)
	}
	for _, id := range m.h.ids(statuses...) {
		m.h.settled(t, id)
	}
	if m.random.IntN(4) == 0 {
		t.Log("the agent begins anew")
		if err := m.h.shut(ctx); err != nil {
			t.Fatal(err)
		}
		m.h = m.w.mustOpen(t)
		m.tally.h = m.h
	}
	m.w.consistent(t, m.h)
	m.look(t)
}

// isDisturbed says whether a sandbox that an operation is about has lost its sentry.
func (m *model) isDisturbed(what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.disturbed {
		if strings.Contains(what, id) {
			return true
		}
	}
	return false
}

// look compares what sandboxes remember with what they knew.
func (m *model) look(t *testing.T) {
	t.Helper()
	for id := range m.disturbed {
		if sb, err := m.h.Get(id); err != nil || sb.Status == Failed || sb.Status == Running {
			m.tally.forget(id)
		}
		delete(m.disturbed, id)
	}
	for _, id := range m.h.ids(Failed) {
		m.tally.forget(id) // it goes on, if at all, from an older state
	}
	for _, id := range m.h.ids(Running) {
		if _, err := m.h.answer(t.Context(), id, "test -e /root/count"); err != nil {
			continue // its create was disturbed before it counted
		}
		m.tally.look(t, id)
		m.tally.write(t, id)
	}
}
