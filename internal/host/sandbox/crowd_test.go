package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// crowdGroup is the cgroup of an agent whose process table is full.
func (w world) crowdGroup() string {
	const v1 = "/sys/fs/cgroup/pids"
	if _, err := os.Stat(v1); err == nil {
		return filepath.Join(v1, filepath.Base(w.runDir)+"-crowd")
	}
	return filepath.Join("/sys/fs/cgroup", filepath.Base(w.runDir)+"-crowd")
}

// crowdAction is what it is told to do.
const crowdAction = "crowd"

// crowd is the process that does things while there is room for few more processes, at last
// for fewer than any of them needs. It reports nothing but what should
// never be: only what it leaves counts, also when it dies of it.
func (w world) crowd(ctx context.Context, h *host) error {
	group := w.crowdGroup()
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	write := func(file, value string) error { return os.WriteFile(filepath.Join(group, file), []byte(value), 0) }
	if err := write("cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	for _, spare := range []int{64, 32, 16, 8, 4, 0} {
		data, err := os.ReadFile(filepath.Join(group, "pids.current"))
		if err != nil {
			return err
		}
		now, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			return err
		}
		if err := write("pids.max", strconv.Itoa(now+spare)); err != nil {
			return err
		}
		for _, do := range []string{"create", "destroy the made", "pause", "resume", "snapshot", "fork", "destroy the made"} {
			switch do {
			case "destroy the made":
				for _, id := range []string{idX, idY} {
					_ = h.Destroy(ctx, id) // it may never have been made
				}
				err = h.Snapshots().Delete(ctx, snapX)
			default:
				err = faultActions[do](ctx, w, h)
			}
			fmt.Fprintf(os.Stderr, "room for %d, %s: %v\n", spare, do, err)
		}
	}
	return write("pids.max", "max")
}

// A full process table fails what needs a process, with an error; sandboxes that are there
// live on, and nothing is left of what failed, even when the agent does not survive it.
func TestAFullProcessTable(t *testing.T) {
	w := newWorld(t)
	h := w.mustOpen(t)
	defer func() { w.end(t, h) }()
	tally := newTally(h)
	for _, id := range []string{idA, idB} {
		h.bring(t, id, Running)
		tally.look(t, id)
		tally.write(t, id)
	}
	if err := h.shut(t.Context()); err != nil {
		t.Fatal(err)
	}
	said, err := w.runChild(t.Context(), crowdAction, "")
	t.Logf("the process ended with %v:\n%s", err, said)
	if !strings.Contains(said, "too many processes") {
		t.Error("nothing hit the limit")
	}
	eventually(t, "its processes are gone", func() bool {
		err := os.Remove(w.crowdGroup())
		return err == nil || errors.Is(err, fs.ErrNotExist)
	})
	h = w.mustOpen(t)
	tally.h = h
	w.consistent(t, h)
	for _, id := range []string{idX, idY} {
		_ = h.Destroy(t.Context(), id) // made in the moment of a death
	}
	tally.look(t, idB)
	if sb, err := h.Get(idA); err != nil || sb.Status == Failed {
		t.Fatalf("it is %+v, %v", sb, err)
	}
	h.bring(t, idA, Running)
	tally.look(t, idA)
}
