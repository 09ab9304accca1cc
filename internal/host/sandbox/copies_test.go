package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const snapA = "sna0000000000000000000"

// who is what a copy must not share with the sandbox that it was made from.
const who = `hostname; cat /run/wrenn/sandbox-id /etc/machine-id; ip -4 -o addr show eth0 2>/dev/null || cat /proc/net/fib_trie | grep -m1 10.113; grep 127.0.1.1 /etc/hosts; cat /etc/ssh/ssh_host_ed25519_key`

func (h *host) sameAs(t *testing.T, a, b, memory string) {
	t.Helper()
	if got := h.mustAnswer(t, b, "cat /root/note /dev/shm/note"); got != memory {
		t.Errorf("%s has %q in its files, want %q", b, got, memory)
	}
	whoA, whoB := strings.Split(h.mustAnswer(t, a, who), "\n"), strings.Split(h.mustAnswer(t, b, who), "\n")
	if len(whoA) < 5 || len(whoA) != len(whoB) {
		t.Fatalf("%q and %q", whoA, whoB)
	}
	for i := range whoA {
		if whoA[i] == whoB[i] && !strings.Contains(whoA[i], "OPENSSH PRIVATE KEY") {
			// The frame of a key is the same in all of them, its first and last line differ.
			if !strings.HasPrefix(whoA[i], "b3BlbnNzaC1rZXktdjEAAAAA") {
				t.Errorf("both are %q", whoA[i])
			}
		}
	}
	if whoB[0] != b || whoB[1] != b {
		t.Errorf("%s calls itself %q", b, whoB[:2])
	}
}

func TestSnapshotsAndForksForReal(t *testing.T) {
	w := newWorld(t)
	h := w.mustOpen(t)
	defer func() { w.end(t, h) }()
	if _, err := h.Create(t.Context(), small(idA)); err != nil {
		t.Fatal(err)
	}
	if err := h.counting(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	h.mustAnswer(t, idA, "echo files >/root/note; echo memory >/dev/shm/note; mkdir -p /etc/ssh; echo old >/etc/ssh/ssh_host_ed25519_key")
	const memory = "files\nmemory"
	before := h.count(t, idA)

	snap, err := h.Snapshots().Create(t.Context(), idA, snapA)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped for %v, %d KiB", snap.Stopped, snap.Bytes>>10)
	if _, err := h.Snapshots().Create(t.Context(), idA, snapA); !fault.Is(err, fault.Conflict) {
		t.Errorf("a snapshot id that is taken: %v", err)
	}
	if h.count(t, idA) < before {
		t.Error("the sandbox did not go on as it was")
	}
	req := CreateRequest{ID: idB, Snapshot: snapA, Env: map[string]string{"SHAPE": "round"}}
	if sb, err := h.Create(t.Context(), req); err != nil || sb.Template != "base" || sb.Resources != small(idA).Resources {
		t.Fatalf("%+v, %v", sb, err)
	}
	h.mustAnswer(t, idA, "echo -n >/etc/ssh/ssh_host_ed25519_key; for i in 1 2 3 4 5 6 7; do echo $i >>/etc/ssh/ssh_host_ed25519_key; done")
	h.sameAs(t, idA, idB, memory)
	if got := h.mustAnswer(t, idB, "echo $COLOUR $SHAPE"); got != "green round" {
		t.Errorf("the environment is %q", got)
	}
	if n := h.count(t, idB); n < before {
		t.Errorf("the copy's counter is at %d, after %d", n, before)
	}
	if _, err := h.Create(t.Context(), CreateRequest{ID: idC, Snapshot: snapA, Resources: Resources{1, 512, 512}}); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("other sizes than the snapshot's: %v", err)
	}

	began := time.Now()
	copies := []string{idC, "sbd0000000000000000000", "sbe0000000000000000000"}
	forks, err := h.Snapshots().Fork(t.Context(), idB, copies)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d forks in %v", len(forks), time.Since(began))
	for i, sb := range forks {
		if sb.ID != copies[i] || sb.Status != Running {
			t.Errorf("fork %d: %+v", i, sb)
		}
		h.sameAs(t, idB, sb.ID, memory)
	}
	if _, err := h.Snapshots().Fork(t.Context(), idB, []string{"sbf0000000000000000000", idC}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a fork to an id that is taken: %v", err)
	}
	if list := h.cfg.Snapshots.List(); len(list) != 1 {
		t.Errorf("snapshots %v", list)
	}
	if err := h.Snapshots().Delete(t.Context(), snapA); err != nil {
		t.Error(err)
	}
	if err := h.Snapshots().Delete(t.Context(), snapA); !fault.Is(err, fault.NotFound) {
		t.Errorf("a second delete: %v", err)
	}
	if _, err := h.Create(t.Context(), CreateRequest{ID: "sbf0000000000000000000", Snapshot: snapA}); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a snapshot that is gone: %v", err)
	}
	// A copy can be paused like any other.
	if _, err := h.Pause(t.Context(), idC); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Resume(t.Context(), idC, 0); err != nil {
		t.Fatal(err)
	}
	if got := h.mustAnswer(t, idC, "cat /root/note /dev/shm/note; hostname"); got != memory+"\n"+idC {
		t.Errorf("%q", got)
	}
}

func TestWarmSandboxesForReal(t *testing.T) {
	w := newWorld(t)
	h := w.mustOpen(t)
	defer func() { w.end(t, h) }()
	if _, err := h.Create(t.Context(), small(idA)); err != nil {
		t.Fatal(err)
	}
	h.mustAnswer(t, idA, "echo files >/root/note; echo memory >/dev/shm/note; mkdir -p /etc/ssh; seq 9 >/etc/ssh/ssh_host_ed25519_key")
	if _, err := h.Snapshots().Create(t.Context(), idA, snapA); err != nil {
		t.Fatal(err)
	}
	if err := h.Snapshots().SetWarm(t.Context(), []Warm{{snapA, 1}}); err != nil {
		t.Fatal(err)
	}
	ready := func() bool {
		h.warm.mu.Lock()
		defer h.warm.mu.Unlock()
		return len(h.warm.ready[snapA]) == 1
	}
	for _, id := range []string{idB, idC} {
		eventually(t, "one is ready", ready)
		began := time.Now()
		if _, err := h.Create(t.Context(), CreateRequest{ID: id, Snapshot: snapA}); err != nil {
			t.Fatal(err)
		}
		t.Logf("a warm create took %v", time.Since(began))
		if run := h.entries[id].run.id; run == id {
			t.Error("it was not a warm one")
		}
		if got := h.mustAnswer(t, id, "cat /root/note /dev/shm/note; hostname; cat /run/wrenn/sandbox-id"); got != "files\nmemory\n"+id+"\n"+id {
			t.Errorf("%q", got)
		}
	}
	// What was warm once pauses, and runs on under the next agent, as any other.
	if _, err := h.Pause(t.Context(), idB); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is ready", ready)
	if err := h.shut(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = w.mustOpen(t)
	if _, err := h.Resume(t.Context(), idB, 0); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{idB, idC} {
		if got := h.mustAnswer(t, id, "hostname"); got != id {
			t.Errorf("%q", got)
		}
	}
	if n := len(w.leases(t)); n != 3 {
		t.Errorf("%d slots for three sandboxes", n)
	}
}

// sentryPID returns the process id of the sentry of a run.
func (w world) sentryPID(run string) (int, error) {
	data, err := os.ReadFile(filepath.Join(w.runDir, "bundles", run, "sentry.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// The agent goes and comes back; what ran goes on, and what died meanwhile says so.
func TestSandboxesOutliveTheirAgent(t *testing.T) {
	w := newWorld(t)
	h := w.mustOpen(t)
	defer func() { w.end(t, h) }()
	for _, id := range []string{idA, idB, idC} {
		if _, err := h.Create(t.Context(), small(id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.counting(t.Context(), idA); err != nil {
		t.Fatal(err)
	}
	before := h.count(t, idA)
	if _, err := h.Pause(t.Context(), idC); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Resume(t.Context(), idC, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.shut(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{idB, idC} {
		pid, err := w.sentryPID(id)
		if err == nil {
			err = unix.Kill(pid, unix.SIGKILL)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	h = w.mustOpen(t)
	if now := h.count(t, idA); now < before {
		t.Errorf("the counter went from %d to %d", before, now)
	}
	if got := h.mustAnswer(t, idA, "echo $COLOUR; getent hosts "+idA+" | wc -l"); got != "green\n1" {
		t.Errorf("%q", got)
	}
	for id, resumable := range map[string]bool{idB: false, idC: true} {
		sb, err := h.Get(id)
		if err != nil || sb.Status != Failed || strings.Contains(sb.Reason, "can be resumed") != resumable {
			t.Errorf("%+v, %v", sb, err)
		}
		if _, err := h.Resume(t.Context(), id, 0); (err == nil) != resumable {
			t.Errorf("resume: %v", err)
		}
	}
	if got := h.mustAnswer(t, idC, "hostname"); got != idC {
		t.Errorf("%q", got)
	}
	eventually(t, "what a sandbox uses is measured again", func() bool {
		points, err := h.Metrics(idA, time.Minute)
		return err == nil && len(points) > 0
	})
	if n := len(w.leases(t)); n != 2 {
		t.Errorf("%d slots", n)
	}
}
