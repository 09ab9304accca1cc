package filesystem

import (
	"errors"
	"os"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// What is composed is never removed, by whatever name it is also a source.
func TestComposeKeepsTheDestinationByEveryName(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	if err := errors.Join(os.Mkdir(dir+"/real", 0o755), os.Symlink("real", dir+"/alias"), os.Symlink("real/to", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	for _, names := range [][2]string{{"/alias/to", "/real/to"}, {"/real/to", "/alias/to"}, {"/link", "/alias/to"}, {"/alias/to", "/link"}} {
		write(t, dir+"/one", "1", 0o644)
		write(t, dir+"/real/to", "1", 0o644)
		entry, err := files.Compose(t.Context(), []string{dir + names[0], dir + "/one"}, dir+names[1], someone)
		if err != nil || entry.Path != dir+names[1] {
			t.Errorf("%v: %+v, %v", names, entry, err)
		}
		if got, err := os.ReadFile(dir + "/real/to"); err != nil || string(got) != "11" {
			t.Errorf("%v: %q, %v", names, got, err)
		}
		onlyEntries(t, dir, "alias", "link", "real")
		onlyEntries(t, dir+"/real", "to")
	}
	// Another name of what was there before is a source like others.
	if err := os.Link(dir+"/real/to", dir+"/hard"); err != nil {
		t.Fatal(err)
	}
	if _, err := files.Compose(t.Context(), []string{dir + "/hard"}, dir+"/alias/to", someone); err != nil {
		t.Error(err)
	}
	onlyEntries(t, dir, "alias", "link", "real")
}

func TestWhatFailsLeavesNoDirectories(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	if err := os.Mkdir(dir+"/tree", 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := files.Move(t.Context(), dir+"/tree", dir+"/tree/a/b/c", someone)
	wantCode(t, err, fault.InvalidRequest, "cannot be moved into itself")
	onlyEntries(t, dir+"/tree")
	_, err = files.Compose(t.Context(), []string{dir + "/none"}, dir+"/a/b/to", someone)
	wantCode(t, err, fault.NotFound, dir+"/none")
	onlyEntries(t, dir, "tree")
	// What somebody has used meanwhile stays.
	r, err := Replace(dir+"/a/b/to", someone)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/a/other", "", 0o644)
	r.Abort()
	onlyEntries(t, dir+"/a", "other")
	if err := os.Symlink(dir+"/new/", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	_, err = Replace(dir+"/link", someone)
	wantCode(t, err, fault.InvalidRequest, "is a directory")
	onlyEntries(t, dir, "a", "link", "tree")
}
