package snapshot

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// state is what the tests let a runtime write: several pieces, one piece, and nothing.
var state = map[string][]byte{
	"pages.img":      noise(2*pieceSize + 12345),
	"checkpoint.img": noise(54321),
	"empty.img":      nil,
}

func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(data)
	return data
}

// small is enough where the content does not matter.
var small = map[string][]byte{"pages.img": []byte("pages")}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func draft(t *testing.T, s *Store, id string, files map[string][]byte) *Draft {
	t.Helper()
	d, err := s.Draft(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(d.Dir(), name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func commitNew(t *testing.T, s *Store, id string, files map[string][]byte) Snapshot {
	t.Helper()
	snap, err := draft(t, s, id, files).Commit(t.Context(), sample)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

var sample = Manifest{
	Kind: Pause, SandboxID: "sbx", Template: "base", Resources: Resources{VCPUs: 2, MemoryMB: 512, DiskMB: 1024},
	Runtime: "gvisor", Image: "/images/base.erofs", GuestDir: "/guest/1", Env: map[string]string{"A": "<b>&\u2028"},
	DefaultUser: "user", Token: "secret", CreatedAt: time.Unix(1700000000, 5).UTC(), Stopped: 42 * time.Millisecond,
}

// names lists what lies in a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func wantCode(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if !fault.Is(err, code) || err == nil {
		t.Errorf("got %v (%s), want %s", err, fault.CodeOf(err), code)
	}
}

func TestACommittedSnapshotIsThereAfterAReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshots")
	s := open(t, dir)
	made := commitNew(t, s, "sn1", state)
	if made.ID != "sn1" || made.Version != version || len(made.Files) != len(state) || made.Bytes < 2*pieceSize {
		t.Errorf("made %+v", made)
	}
	for name, s := range map[string]*Store{"same": s, "reopened": open(t, dir)} {
		got, err := s.Get("sn1")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(made, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if diff := cmp.Diff([]Snapshot{made}, s.List()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if err := s.Verify(t.Context(), "sn1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		used, release, err := s.Use("sn1")
		if err != nil {
			t.Fatal(err)
		}
		for file, want := range state {
			if data, err := os.ReadFile(filepath.Join(used, file)); err != nil || !bytes.Equal(data, want) {
				t.Errorf("%s: %s differs, %v", name, file, err)
			}
		}
		release()
		release() // twice is once
	}
	info, err := os.Stat(filepath.Join(dir, "sn1", manifestName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the manifest, which has a token in it, is %v, %v", info.Mode(), err)
	}
	if info, err = os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the store is %v, %v", info.Mode(), err)
	}
}

// One for copies that are waited for is there for the next process, and never trusted later.
func TestAForkIsThereUnchecked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	fork := sample
	fork.Kind = Fork
	made, err := draft(t, s, "fk1", state).Commit(t.Context(), fork)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*Store{"same": s, "reopened": open(t, dir)} {
		got, err := s.Get("fk1")
		if err != nil || got.Damaged != "" {
			t.Fatalf("%s: %+v, %v", name, got, err)
		}
		if diff := cmp.Diff(made, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		wantCode(t, s.Verify(t.Context(), "fk1"), fault.InvalidState)
	}
	if err := s.Remove("fk1"); err != nil {
		t.Fatal(err)
	}
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSendingEarlyChangesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	for _, ends := range []string{"commit", "abort"} {
		d := draft(t, s, "sn1", nil)
		d.SendEarly()
		file, err := os.Create(filepath.Join(d.Dir(), "pages.img"))
		if err != nil {
			t.Fatal(err)
		}
		for part := range slices.Chunk(state["pages.img"], 1<<20) {
			if _, err := file.Write(part); err != nil {
				t.Fatal(err)
			}
			if sent := sendNew(file.Name(), 0); sent < int64(len(part)) {
				t.Fatalf("%d bytes were sent", sent)
			}
		}
		file.Close()
		if ends == "abort" {
			if err := d.Abort(); err != nil {
				t.Error(err)
			}
			continue
		}
		if _, err := d.Commit(t.Context(), sample); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.Abort(), s.Verify(t.Context(), "sn1"), s.Remove("sn1")); err != nil {
			t.Error(err)
		}
	}
	if left := names(t, s.dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	goleak.VerifyNone(t)
}

func TestTheSizeIsThatOnTheDisk(t *testing.T) {
	s := open(t, t.TempDir())
	d := draft(t, s, "sn1", small)
	const length = 1 << 30
	if err := os.Truncate(filepath.Join(d.Dir(), "pages.img"), length); err != nil {
		t.Fatal(err)
	}
	snap, err := d.Commit(t.Context(), sample)
	if err != nil || snap.Bytes > 1<<20 || snap.Files[0].Size != length {
		t.Errorf("a hole takes %d bytes, %v", snap.Bytes, err)
	}
}

func TestADraftIsSeenByNobody(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	d := draft(t, s, "sn1", small)
	if all := s.List(); len(all) != 0 {
		t.Errorf("listed %v", all)
	}
	_, err := s.Get("sn1")
	wantCode(t, err, fault.NotFound)
	_, err = s.Draft(t.Context(), "sn1", 0)
	wantCode(t, err, fault.Conflict)
	for range 2 {
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	}
	_, err = d.Commit(t.Context(), sample)
	wantCode(t, err, fault.InvalidState)
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}

	made := draft(t, s, "sn1", small)
	if _, err := made.Commit(t.Context(), sample); err != nil {
		t.Fatal(err)
	}
	if err := made.Abort(); err != nil {
		t.Error(err)
	}
	if err := s.Verify(t.Context(), "sn1"); err != nil {
		t.Errorf("after the abort of a committed draft: %v", err)
	}
	_, err = s.Draft(t.Context(), "sn1", 0)
	wantCode(t, err, fault.Conflict)
}

func TestWhatCannotBeASnapshotIsRefused(t *testing.T) {
	s := open(t, t.TempDir())
	for _, id := range []string{"", ".", "..", "a/b", ".hidden", "A", "-a", "a b", strings.Repeat("a", 65), "a\x00"} {
		_, err := s.Draft(t.Context(), id, 0)
		wantCode(t, err, fault.InvalidRequest)
	}
	for name, make := range map[string]func(dir string) error{
		"nothing":   func(string) error { return nil },
		"link":      func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "pages.img")) },
		"directory": func(dir string) error { return os.Mkdir(filepath.Join(dir, "pages.img"), 0o700) },
	} {
		d := draft(t, s, "sn1", nil)
		if err := make(d.Dir()); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Commit(t.Context(), sample); err == nil {
			t.Errorf("%s became a snapshot", name)
		}
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	d := draft(t, s, "sn1", state)
	cancel()
	_, err := d.Commit(ctx, sample)
	wantCode(t, err, fault.Canceled)
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
	if left := names(t, s.dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	s := open(t, t.TempDir())
	commitNew(t, s, "sn1", state)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantCode(t, s.Verify(ctx, "sn1"), fault.Canceled)
	wantCode(t, s.Verify(t.Context(), "sn2"), fault.NotFound)
}

func TestAnUsedSnapshotGoesWithItsLastUser(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	commitNew(t, s, "sn1", small)
	used, release, err := s.Use("sn1")
	if err != nil {
		t.Fatal(err)
	}
	_, releaseToo, err := s.Use("sn1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("sn1"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Remove("sn1"), fault.NotFound)
	_, err = s.Get("sn1")
	wantCode(t, err, fault.NotFound)
	_, _, err = s.Use("sn1")
	wantCode(t, err, fault.NotFound)
	_, err = s.Draft(t.Context(), "sn1", 0)
	wantCode(t, err, fault.Conflict)
	if all := s.List(); len(all) != 0 {
		t.Errorf("listed %v", all)
	}
	release()
	release()
	if _, err := os.ReadFile(filepath.Join(used, "pages.img")); err != nil {
		t.Errorf("it went before its last user did: %v", err)
	}
	releaseToo()
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestUsersAndRemovalsAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var all sync.WaitGroup
	var removals sync.WaitGroup
	for _, id := range []string{"sn1", "sn2", "sn3"} {
		commitNew(t, s, id, small)
		seen := make(chan struct{}, 1)
		for range 8 {
			all.Go(func() {
				for {
					used, release, err := s.Use(id)
					if err != nil {
						if !fault.Is(err, fault.NotFound) {
							t.Error(err)
						}
						return
					}
					if data, err := os.ReadFile(filepath.Join(used, "pages.img")); err != nil || string(data) != "pages" {
						t.Errorf("read %q, %v", data, err)
					}
					release()
					select {
					case seen <- struct{}{}:
					default:
					}
				}
			})
		}
		removals.Go(func() {
			<-seen
			if err := s.Remove(id); err != nil {
				t.Error(err)
			}
		})
	}
	removals.Wait()
	all.Wait()
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestRetainKeepsWhatIsWanted(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, id := range []string{"sn1", "sn2", "sn3"} {
		commitNew(t, s, id, small)
	}
	if err := s.Retain(func(snap Snapshot) bool { return snap.ID == "sn2" }); err != nil {
		t.Fatal(err)
	}
	if left := names(t, dir); !slices.Equal(left, []string{"sn2"}) {
		t.Errorf("left %v", left)
	}
}

func TestForeignThingsAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "lost+found"), 0o700), os.WriteFile(filepath.Join(dir, "note"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if all := open(t, dir).List(); len(all) != 0 {
		t.Errorf("listed %v", all)
	}
	if left := names(t, dir); !slices.Equal(left, []string{"lost+found", "note"}) {
		t.Errorf("left %v", left)
	}
}
