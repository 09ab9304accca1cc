package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/child"
	"github.com/wrenn-sandbox/wrenn/internal/host/runtime"
)

// faultChild is in the environment of a process of this test that is to die: what it is to
// do and where it ends.
const faultChild = "WRENN_TEST_FAULT"

// dying is what such a process is told.
type dying struct {
	Dir, RunDir, Instance, Bin, Images string
	Do, Point                          string
}

func TestMain(m *testing.M) {
	if told := os.Getenv(faultChild); told != "" {
		if err := runDying(told); err != nil {
			fmt.Fprintln(os.Stderr, "the process did not die:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The sandboxes of the fault table: A is what is worked on, B is nobody's business.
const (
	idX   = "sbx0000000000000000000"
	idY   = "sby0000000000000000000"
	snapX = "snx0000000000000000000"
)

// runDying is the process that dies at its point, or says why it did not.
func runDying(told string) error {
	var d dying
	if err := json.Unmarshal([]byte(told), &d); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w := world{dir: d.Dir, runDir: d.RunDir, instance: d.Instance, bin: d.Bin, images: d.Images}
	opened := false
	h, err := w.open(ctx, Config{At: func(point string) {
		if point == d.Point && (opened || d.Do == "open") {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}})
	if err != nil {
		return err
	}
	opened = true
	if d.Do == crowdAction {
		return w.crowd(ctx, h)
	}
	if err := faultActions[d.Do](ctx, w, h); err != nil {
		return err
	}
	// What goes on behind an answer gets the time to come to its point.
	h.watchers.Go(func() { <-ctx.Done() })
	<-ctx.Done()
	return fmt.Errorf("%s never came to %s", d.Do, d.Point)
}

// unwilling is a runtime that does not write down or start.
type unwilling struct{ Runtime }

var errUnwilling = errors.New("the runtime is not willing")

func (unwilling) Checkpoint(context.Context, string, string) error { return errUnwilling }
func (unwilling) Start(context.Context, runtime.Spec) error        { return errUnwilling }

var faultActions = map[string]func(context.Context, world, *host) error{
	"open":   func(context.Context, world, *host) error { return nil },
	"create": func(ctx context.Context, _ world, h *host) error { _, err := h.Create(ctx, small(idX)); return err },
	"create from a snapshot": func(ctx context.Context, _ world, h *host) error {
		_, err := h.Create(ctx, CreateRequest{ID: idX, Snapshot: snapX})
		return err
	},
	"pause":   func(ctx context.Context, _ world, h *host) error { _, err := h.Pause(ctx, idA); return err },
	"resume":  func(ctx context.Context, _ world, h *host) error { _, err := h.Resume(ctx, idA, 0); return err },
	"destroy": func(ctx context.Context, _ world, h *host) error { return h.Destroy(ctx, idA) },
	"snapshot": func(ctx context.Context, _ world, h *host) error {
		_, err := h.Snapshots().Create(ctx, idA, snapX)
		return err
	},
	"unsnapshot": func(ctx context.Context, _ world, h *host) error { return h.Snapshots().Delete(ctx, snapX) },
	"fork": func(ctx context.Context, _ world, h *host) error {
		_, err := h.Snapshots().Fork(ctx, idA, []string{idX, idY})
		return err
	},
	"warm": func(ctx context.Context, _ world, h *host) error {
		return h.Snapshots().SetWarm(ctx, []Warm{{snapX, 1}})
	},
	"end": func(_ context.Context, w world, h *host) error {
		pid, err := w.sentryPID(idA)
		if err != nil {
			return err
		}
		return unix.Kill(pid, unix.SIGKILL)
	},
	"fail to pause": func(ctx context.Context, _ world, h *host) error {
		h.cfg.Runtime = unwilling{h.cfg.Runtime}
		_, err := h.Pause(ctx, idA)
		return err
	},
	"fail to resume": func(ctx context.Context, _ world, h *host) error {
		h.cfg.Runtime = unwilling{h.cfg.Runtime}
		_, err := h.Resume(ctx, idA, 0)
		return err
	},
}

// faultCase is what is to be after a death at some points of an action.
type faultCase struct {
	do      string
	points  []string
	before  Status // of A
	snapX   bool   // whether there is a snapshot of A before
	after   Status // of A; empty: it is gone
	made    []string
	snapNow bool
	cut     bool // whether A has lost its link meanwhile
}

// faultTable is the documented state after the death of the agent at every point.
func faultTable() []faultCase {
	at := func(op string, keys ...string) []string { return named(op, keys) }
	copies := named("copy", []string{"record"}, keys(roomPhases), keys(launchPhases), keys(introducePhases), []string{"running"})
	making := slices.Concat([]string{"record"}, keys(roomPhases), keys(launchPhases), keys(introducePhases))
	return []faultCase{
		{do: "create", points: at("create", making...), before: Running, after: Running},
		{do: "create", points: at("create", "running"), before: Running, after: Running, made: []string{idX}},
		{do: "create from a snapshot", points: at("create", "slot", "runtime", "init"), before: Running, snapX: true, after: Running, snapNow: true},
		{do: "pause", points: at("pause", "record", "prepare", "hold", "checkpoint", "commit"), before: Running, after: Running},
		{do: "pause", points: at("pause", "save", "runtime", "slot", "cleared"), before: Running, after: Paused},
		{do: "fail to pause", points: at("pause", "undone"), before: Running, after: Running},
		{do: "resume", points: slices.Concat(at("former", keys(endPhases)...),
			at("resume", slices.Concat(keys(beforeResume), keys(launchPhases), keys(afterResume))...)), before: Paused, after: Paused},
		{do: "resume", points: at("resume", "running"), before: Paused, after: Running},
		{do: "fail to resume", points: at("resume", "undone"), before: Paused, after: Paused},
		{do: "snapshot", points: at("snapshot", "prepare", "checkpoint", "thaw"), before: Running, after: Running},
		{do: "snapshot", points: at("snapshot", "commit"), before: Running, after: Running, snapNow: true},
		{do: "unsnapshot", points: at("unsnapshot", "begun"), before: Running, snapX: true, after: Running, snapNow: true},
		{do: "unsnapshot", points: at("unsnapshot", "removed"), before: Running, snapX: true, after: Running},
		{do: "fork", points: slices.Concat(at("fork", keys(imagePhases)...), at("fork", "copied"), copies), before: Running, after: Running},
		{do: "fork", points: at("fork", "dropped"), before: Running, after: Running, made: []string{idX, idY}},
		{do: "warm", points: at("warm", keys(launchPhases)...), before: Running, snapX: true, after: Running, snapNow: true},
		{do: "end", points: at("end", "runtime", "slot", "failed"), before: Running, after: Failed},
		{do: "open", points: slices.Concat(at("adopt", slices.Concat(keys(adoptPhases), []string{"running"})...),
			at("recover", "entries", "runs", "slots", "snapshots")), before: Running, after: Running},
		{do: "open", points: at("adopt", keys(endPhases)...), before: Paused, after: Paused},
		{do: "open", points: at("adopt", "untaken"), before: Running, cut: true, after: Paused},
		{do: "destroy", points: at("destroy", append(keys(destroyPhases), "stopped")...), before: Running},
		{do: "destroy", points: at("destroy", "record", "snapshot"), before: Paused},
	}
}

func TestTheFaultTableIsComplete(t *testing.T) {
	tested := map[string]bool{}
	for _, c := range faultTable() {
		for _, p := range c.points {
			tested[p] = true
		}
	}
	for _, p := range Points() {
		if !tested[p] {
			t.Errorf("%s is in no case", p)
		}
		delete(tested, p)
	}
	if len(tested) > 0 {
		t.Errorf("there are no points %v", tested)
	}
}

// The agent is killed at every point of every operation; the next one finds what is
// documented, nothing is lost, nothing is left, and no other sandbox is touched.
func TestDeathOfTheAgentAtEveryPoint(t *testing.T) {
	w := newWorld(t)
	h := w.mustOpen(t)
	defer func() { w.end(t, h) }()
	tally := newTally(h)
	if _, err := h.Create(t.Context(), small(idB)); err != nil {
		t.Fatal(err)
	}
	if err := h.counting(t.Context(), idB); err != nil {
		t.Fatal(err)
	}
	for _, c := range faultTable() {
		points := c.points
		if testing.Short() { // one of each case
			points = points[len(points)-1:]
		}
		for _, point := range points {
			name := c.do + " " + string(c.before) + " " + point
			if failed := !t.Run(name, func(t *testing.T) { w.dieAt(t, &h, tally, c, point) }); failed {
				return // what follows would only say that again
			}
		}
	}
}

// dieAt brings A into its state, lets a process die with it, and looks at what is then.
func (w world) dieAt(t *testing.T, opened **host, tally *tally, c faultCase, point string) {
	ctx := context.WithoutCancel(t.Context())
	h := *opened
	h.bring(t, idA, c.before)
	tally.h = h
	tally.look(t, idB)
	if c.before == Running {
		tally.look(t, idA)
		tally.write(t, idA)
	}
	_, err := h.cfg.Snapshots.Get(snapX)
	switch has := err == nil; {
	case c.snapX && !has:
		_, err = h.Snapshots().Create(ctx, idA, snapX)
	case !c.snapX && has:
		err = h.Snapshots().Delete(ctx, snapX)
	default:
		err = nil
	}
	if err != nil {
		t.Fatal(err)
	}
	link := h.entries[idA].slot.Link
	if err := h.shut(ctx); err != nil {
		t.Fatal(err)
	}
	if c.cut {
		if err := netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: link}}); err != nil {
			t.Fatal(err)
		}
	}
	died := w.die(ctx, c.do, point)
	if h, err = w.open(ctx, Config{}); err != nil {
		t.Fatal(err)
	}
	*opened = h
	if died != nil {
		t.Fatal(died)
	}
	tally.h = h
	if c.cut {
		eventually(t, "it is paused", func() bool { sb, err := h.Get(idA); return err == nil && sb.Status == Paused && h.idle(idA) })
	}
	w.consistent(t, h)
	tally.look(t, idB)
	sb, err := h.Get(idA)
	switch {
	case c.after == "" && !fault.Is(err, fault.NotFound):
		t.Fatalf("it is still there: %+v, %v", sb, err)
	case c.after == "":
		tally.forget(idA)
		return
	case err != nil || sb.Status != c.after:
		t.Fatalf("it is %+v, %v; want %s", sb, err, c.after)
	}
	for _, id := range []string{idX, idY} {
		_, err := h.Get(id)
		if made := slices.Contains(c.made, id); made != (err == nil) {
			t.Errorf("%s was made: %v; want %v", id, err == nil, made)
		}
		if err == nil {
			h.mustAnswer(t, id, "hostname")
			if err := h.Destroy(ctx, id); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := h.cfg.Snapshots.Get(snapX); c.snapNow != (err == nil) {
		t.Errorf("the snapshot is there: %v; want %v", err == nil, c.snapNow)
	}
	if c.after == Failed {
		// It goes on from its pause, which is older than what was counted since.
		tally.forget(idA)
	}
	h.bring(t, idA, Running)
	tally.look(t, idA)
}

// die runs a process until it dies at a point of what it does.
func (w world) die(ctx context.Context, do, point string) error {
	said, err := w.runChild(ctx, do, point)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return fmt.Errorf("the process should have been killed: %w: %s", err, said)
	}
	return nil
}

// runChild runs a process of this test that does something, up to a point.
func (w world) runChild(ctx context.Context, do, point string) (said string, ended error) {
	told, err := json.Marshal(dying{w.dir, w.runDir, w.instance, w.bin, w.images, do, point})
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), faultChild+"="+string(told))
	var out strings.Builder
	cmd.Stderr = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = child.Run(cmd)
	return out.String(), err
}

// bring brings a sandbox into a state, whatever it is in. One that runs was paused before, so
// that there is a former snapshot, and counts.
func (h *host) bring(t testing.TB, id string, status Status) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	sb, err := h.Get(id)
	if fault.Is(err, fault.NotFound) {
		if sb, err = h.Create(ctx, small(id)); err != nil {
			t.Fatal(err)
		}
		if err := h.counting(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if sb.Status == Running && (status == Paused || sb.PausedAt.IsZero()) {
		if sb, err = h.Pause(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if sb.Status != status && status == Running {
		if _, err := h.Resume(ctx, id, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// consistent compares what is on the machine with what the host says.
func (w world) consistent(t testing.TB, h *host) {
	t.Helper()
	var runs, slots []string
	snapshots := map[string]bool{}
	for _, snap := range h.Snapshots().List() {
		snapshots[snap.ID] = true
	}
	records := 0
	h.mu.Lock()
	for id, e := range h.entries {
		records++
		if e.run != nil {
			runs = append(runs, e.run.id)
			slots = append(slots, fmt.Sprint(e.run.slot.Index))
		} else if e.sandbox.Status == Paused {
			slots = append(slots, fmt.Sprint(e.slot.Index))
		}
		if e.snapshot != "" {
			snapshots[e.snapshot] = true
		}
		if _, busy := e.busy(); busy || !slices.Contains([]Status{Running, Paused, Failed}, e.sandbox.Status) {
			t.Errorf("%s is %s, busy %v", id, e.sandbox.Status, busy)
		}
	}
	h.mu.Unlock()
	listed, err := h.runtime.List(context.WithoutCancel(t.Context()))
	slices.Sort(runs)
	slices.Sort(listed)
	if err != nil || !slices.Equal(runs, listed) {
		t.Errorf("the runtime has %v, the host %v (%v)", listed, runs, err)
	}
	var leased []string
	for _, path := range w.leases(t) {
		leased = append(leased, filepath.Base(path))
	}
	slices.Sort(slots)
	slices.Sort(leased)
	if !slices.Equal(slots, leased) {
		t.Errorf("slots %v are leased, the host has %v", leased, slots)
	}
	if files, _ := filepath.Glob(filepath.Join(w.dir, "sandboxes", "*")); len(files) != records {
		t.Errorf("records %v of %d sandboxes", files, records)
	}
	onDisk, err := os.ReadDir(filepath.Join(w.dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range onDisk {
		if !snapshots[e.Name()] {
			t.Errorf("nobody needs %s", e.Name())
		}
		delete(snapshots, e.Name())
	}
	if len(snapshots) > 0 {
		t.Errorf("snapshots %v are missing", snapshots)
	}
}
