package atomicfile

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestReadersSeeOneOrTheOther(t *testing.T) {
	for name, write := range map[string]func(string, []byte) error{
		"Write":        func(p string, d []byte) error { return Write(p, d, 0o640) },
		"WriteDurable": func(p string, d []byte) error { return WriteDurable(p, d, 0o640) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			contents := []string{strings.Repeat("a", 1<<16), strings.Repeat("b", 1<<17)}
			if err := write(path, []byte(contents[0])); err != nil {
				t.Fatal(err)
			}
			var readers sync.WaitGroup
			done := make(chan struct{})
			readers.Go(func() {
				for {
					got, err := os.ReadFile(path)
					if err != nil || string(got) != contents[0] && string(got) != contents[1] {
						t.Errorf("read %d bytes: %v", len(got), err)
						return
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
			for i := range 50 {
				if err := write(path, []byte(contents[i%2])); err != nil {
					t.Error(err)
				}
			}
			close(done)
			readers.Wait()
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("%v, %v", info, err)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), Pattern)); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

func TestAFailureLeavesTheOldFileAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
}
