package filesystem

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestRemoveOfALinkLeavesWhatItLeadsTo(t *testing.T) {
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept", "file")
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Dir(kept), link); err != nil {
		t.Fatal(err)
	}
	if err := (&Files{}).Remove(link); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	if err := (&Files{}).Remove(filepath.Join(dir, "none")); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}

// The decision alone: a mistake in it must not cost the machine that runs the test.
func TestOnlyDirectoriesAreTrees(t *testing.T) {
	for path, want := range map[string]bool{t.TempDir(): true, "/proc/self/root": false, "/proc/self/exe": false, "/dev/null": false} {
		if tree, err := isTree(path); err != nil || tree != want {
			t.Errorf("%s: %v, %v", path, tree, err)
		}
	}
	for _, root := range []string{"/", "/proc/self/root/.", "/.."} {
		if _, err := isTree(root); !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%s may be removed: %v", root, err)
		}
	}
}
