package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// The child process of TestADeathAtAnyStep is told by these what to do.
const (
	childDir  = "WRENN_SNAPSHOT_TEST_DIR"
	childStep = "WRENN_SNAPSHOT_TEST_STEP"
)

// Where a process may die besides the ends of a commit's phases.
const (
	afterDraft   = -3
	whileWriting = -2
	afterWriting = -1
)

// dieAtStep is the child: it replaces snapshot old by new and kills itself on the way. What
// it does after the commit is what a pause does with the previous snapshot.
func dieAtStep(t *testing.T, dir string, step int) {
	at := func(here int) {
		if here == step {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	s := open(t, dir)
	d := draft(t, s, "new", nil)
	at(afterDraft)
	file, err := os.Create(filepath.Join(d.Dir(), "pages.img"))
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := file.Write(state["pages.img"][:1<<20]); err != nil {
			t.Fatal(err)
		}
		at(whileWriting)
	}
	file.Close()
	at(afterWriting)
	c := &commit{draft: d, manifest: sample}
	phases := c.phases()
	for i, p := range phases {
		if err := p.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		at(i)
	}
	_, _, err = s.Use("old")
	if err = errors.Join(err, s.Remove("old")); err != nil {
		t.Fatal(err)
	}
	at(len(phases)) // removed, but in use
	t.Fatalf("step %d does not exist", step)
}

func TestADeathAtAnyStep(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		step, err := strconv.Atoi(os.Getenv(childStep))
		if err != nil {
			t.Fatal(err)
		}
		dieAtStep(t, dir, step)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const publish = 5
	phases := len((&commit{}).phases())
	for step := afterDraft; step <= phases; step++ {
		t.Run(fmt.Sprint("step ", step), func(t *testing.T) {
			dir := t.TempDir()
			commitNew(t, open(t, dir), "old", small)
			child := exec.CommandContext(t.Context(), self, "-test.run=^TestADeathAtAnyStep$")
			child.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprintf("%s=%d", childStep, step))
			out, err := child.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child did not die as it should: %v\n%s", err, out)
			}
			var want []string
			if step >= publish {
				want = append(want, "new")
			}
			if step < phases {
				want = append(want, "old")
			}
			s := open(t, dir)
			if left := names(t, dir); !slices.Equal(left, want) {
				t.Errorf("there is %v, want %v", left, want)
			}
			for _, id := range want {
				if err := s.Verify(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
			if all := s.List(); len(all) != len(want) {
				t.Errorf("listed %v, want %v", all, want)
			}
		})
	}
}

// tinyDisk is a file system with little room.
func tinyDisk(t *testing.T, room string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, room); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAFullDisk(t *testing.T) {
	const mib = 1 << 20
	dir := tinyDisk(t, "size=4m")
	s := open(t, dir)
	commitNew(t, s, "old", small)

	_, err := s.Draft(t.Context(), "new", 5*mib)
	wantCode(t, err, fault.NoSpace)
	first, err := s.Draft(t.Context(), "first", 3*mib)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Draft(t.Context(), "new", 2*mib)
	wantCode(t, err, fault.NoSpace) // the room is promised to the first one
	if err := first.Abort(); err != nil {
		t.Fatal(err)
	}

	d, err := s.Draft(t.Context(), "new", 2*mib)
	if err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(filepath.Join(d.Dir(), "pages.img"), make([]byte, 8*mib), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	_, err = d.Commit(t.Context(), sample) // there is no room for the manifest
	wantCode(t, err, fault.NoSpace)
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if left := names(t, dir); !slices.Equal(left, []string{"old"}) {
		t.Errorf("left %v", left)
	}
	if err := s.Verify(t.Context(), "old"); err != nil {
		t.Error(err)
	}
	commitNew(t, s, "new", small)
}

func TestARemovalNeedsNoRoom(t *testing.T) {
	dir := tinyDisk(t, "nr_inodes=12")
	s := open(t, dir)
	commitNew(t, s, "old", small)
	commitNew(t, s, "used", small)
	_, release, err := s.Use("used")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint("fill", i)), nil, 0o600)
	}
	_, err = s.Draft(t.Context(), "new", 0)
	wantCode(t, err, fault.NoSpace)
	for _, id := range []string{"used", "old"} {
		if err := s.Remove(id); err != nil {
			t.Error(err)
		}
	}
	release()
	for _, id := range []string{"old", "used"} {
		if _, err := os.Lstat(s.path(id)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", id, err)
		}
	}
}
