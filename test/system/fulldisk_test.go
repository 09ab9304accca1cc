package system_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The disk under the data directory is full: creates are refused with the reason, the
// sandbox that filled it can be deleted, and a start after a kill works and makes room.
func TestFullDataDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=640m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	p := ownProgram(t, dir)
	// What a guest writes to a tmpfs of the host counts as its memory.
	greedy := object{"disk_size_mb": 600, "memory_mb": 1500}
	first := newSandbox(t, p, greedy)
	fill(t, first, dir)
	a := p.call(t, http.MethodPost, "/v1/sandboxes", object{})
	if a.status != http.StatusInsufficientStorage || !strings.Contains(string(a.body), "disk") {
		t.Errorf("a create on a full disk: %d %s", a.status, a.body)
	}
	if a := p.call(t, http.MethodDelete, first.path(""), nil); a.status != http.StatusNoContent {
		t.Fatalf("deleting the sandbox that filled the disk: %d %s", a.status, a.body)
	}

	filler := newSandbox(t, p, greedy)
	fill(t, filler, dir)
	p.kill()
	// On the full disk the next one starts, and makes room when it is asked to.
	again := ownProgram(t, dir, "--listen", strings.TrimPrefix(p.url, "http://"))
	if a := again.call(t, http.MethodDelete, filler.path(""), nil); a.status != http.StatusNoContent {
		t.Fatalf("deleting the sandbox that fills the disk: %d %s", a.status, a.body)
	}
	newSandbox(t, again, object{"disk_size_mb": 64}).sh(t, "echo fine")
}

// fill has a sandbox write until the file system at dir is full to the last byte.
func fill(t *testing.T, s *sandbox, dir string) {
	t.Helper()
	s.sh(t, "dd if=/dev/zero of=big bs=1M count=590 2>&1 | tail -1; true")
	// What the guest's block size leaves over.
	rest := filepath.Join(dir, "rest")
	f, err := os.Create(rest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(rest) })
	for block := make([]byte, 4<<10); err == nil; {
		_, err = f.Write(block)
	}
	_ = f.Close() // it is full, as it should be
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil || disk.Bavail > 0 {
		t.Fatalf("%d blocks are free: %v", disk.Bavail, err)
	}
}
