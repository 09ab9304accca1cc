package filesystem

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// numbers names accounts by their numbers.
type numbers struct{}

func (numbers) UserName(uid uint32) string  { return "u" + strconv.Itoa(int(uid)) }
func (numbers) GroupName(gid uint32) string { return "g" + strconv.Itoa(int(gid)) }

var someone = Owner{UID: 65534, GID: 65534}

func wantCode(t *testing.T, err error, code fault.Code, says string) {
	t.Helper()
	if !fault.Is(err, code) || !strings.Contains(fault.MessageOf(err), says) {
		t.Errorf("error %v (%s), want %s saying %q", err, fault.CodeOf(err), code, says)
	}
}

func ownerOf(t *testing.T, path string) Owner {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return Owner{UID: st.Uid, GID: st.Gid}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// onlyEntries fails if dir holds anything but names; a temporary file left behind is such.
func onlyEntries(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

func TestStatLinks(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	write(t, dir+"/file", "12345", 0o640)
	for link, target := range map[string]string{"good": "file", "broken": "../gone", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	plain, err := files.Stat(dir + "/file")
	if err != nil || plain.Type != File || plain.Size != 5 || plain.Mode != 0o640 || plain.Permissions != "-rw-r-----" ||
		plain.Owner != "u0" || plain.Group != "g0" || plain.Name != "file" || plain.SymlinkTarget != "" {
		t.Errorf("file: %+v, %v", plain, err)
	}
	good, err := files.Stat(dir + "/good")
	if err != nil || good.Type != File || good.Mode != 0o640 || good.SymlinkTarget != dir+"/file" || good.Permissions[0] != 'L' || good.Size != 4 {
		t.Errorf("link: %+v, %v", good, err)
	}
	broken, err := files.Stat(dir + "/broken")
	if err != nil || broken.Type != Other || broken.SymlinkTarget != filepath.Dir(dir)+"/gone" {
		t.Errorf("broken link: %+v, %v", broken, err)
	}
	if loop, err := files.Stat(dir + "/loop"); err != nil || loop.Type != Other {
		t.Errorf("link to itself: %+v, %v", loop, err)
	}
	_, err = files.Stat(dir + "/loop/x")
	wantCode(t, err, fault.InvalidRequest, "symbolic links")
	_, err = files.Stat(dir + "/none")
	wantCode(t, err, fault.NotFound, "path '"+dir+"/none' does not exist")
	_, err = files.Stat(dir + "/file/x")
	wantCode(t, err, fault.InvalidRequest, "not a directory")
}

func TestList(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	for _, d := range []string{"sub1/deep/deeper", "sub2"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"file1", "sub1/a", "sub2/b"} {
		write(t, filepath.Join(dir, f), "", 0o644)
	}
	if err := os.Symlink(dir, dir+"/sub2/round"); err != nil {
		t.Fatal(err)
	}
	names := func(root string, depth uint32) []string {
		entries, err := files.List(t.Context(), root, depth)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			out = append(out, strings.TrimPrefix(e.Path, root+"/"))
		}
		return out
	}
	one := []string{"file1", "sub1", "sub2"}
	if got := names(dir, 0); !slices.Equal(got, one) {
		t.Errorf("depth 0: %q", got)
	}
	if got := names(dir, 1); !slices.Equal(got, one) {
		t.Errorf("depth 1: %q", got)
	}
	all := []string{"file1", "sub1", "sub1/a", "sub1/deep", "sub1/deep/deeper", "sub2", "sub2/b", "sub2/round"}
	if got := names(dir, 50); !slices.Equal(got, all) {
		t.Errorf("all: %q", got)
	}
	if got := names(dir+"/sub2/round", 1); !slices.Equal(got, one) {
		t.Errorf("through a link: %q", got)
	}
	_, err := files.List(t.Context(), dir+"/file1", 1)
	wantCode(t, err, fault.InvalidRequest, "is not a directory")
	_, err = files.List(t.Context(), dir+"/none", 1)
	wantCode(t, err, fault.NotFound, "does not exist")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := files.List(canceled, dir, 9); !errors.Is(err, context.Canceled) {
		t.Errorf("a listing that nobody waits for went on: %v", err)
	}
}

func TestMakeDir(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	entry, err := files.MakeDir(dir+"/a/b/c", someone)
	if err != nil || entry.Type != Directory || entry.Mode != 0o755 {
		t.Fatalf("%+v, %v", entry, err)
	}
	for _, made := range []string{"/a", "/a/b", "/a/b/c"} {
		if ownerOf(t, dir+made) != someone {
			t.Errorf("%s does not belong to the user", made)
		}
	}
	if ownerOf(t, dir) == someone {
		t.Error("a directory that was there changed its owner")
	}
	_, err = files.MakeDir(dir+"/a/b", someone)
	wantCode(t, err, fault.Conflict, "already exists")
	write(t, dir+"/f", "", 0o644)
	_, err = files.MakeDir(dir+"/f", someone)
	wantCode(t, err, fault.InvalidRequest, "is not a directory")
	_, err = files.MakeDir(dir+"/f/x", someone)
	wantCode(t, err, fault.InvalidRequest, "not a directory")
}

func TestRemove(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	if _, err := files.MakeDir(dir+"/a/b", someone); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/keep", "kept", 0o644)
	if err := os.Symlink(dir+"/keep", dir+"/a/link"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is there, which is success
		if err := files.Remove(dir + "/a"); err != nil {
			t.Fatal(err)
		}
	}
	onlyEntries(t, dir, "keep")
	wantCode(t, files.Remove("/"), fault.InvalidRequest, "root")
}

func TestMove(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	write(t, dir+"/f", "content", 0o600)
	entry, err := files.Move(t.Context(), dir+"/f", dir+"/new/g", someone)
	if err != nil || entry.Path != dir+"/new/g" || entry.Size != 7 {
		t.Fatalf("%+v, %v", entry, err)
	}
	if ownerOf(t, dir+"/new") != someone || ownerOf(t, dir+"/new/g") == someone {
		t.Error("the new directory is the user's, the file is whose it was")
	}
	_, err = files.Move(t.Context(), dir+"/f", dir+"/h", someone)
	wantCode(t, err, fault.NotFound, "path '"+dir+"/f' does not exist")
	_, err = files.Move(t.Context(), dir+"/new", dir+"/new/x/y", someone)
	wantCode(t, err, fault.InvalidRequest, "into itself")
	_, err = files.Move(t.Context(), dir+"/new/g", dir, someone)
	wantCode(t, err, fault.Conflict, "is a directory")
}

func TestMoveAcrossFileSystems(t *testing.T) {
	dir, other, files := t.TempDir(), t.TempDir(), New(numbers{})
	mountMemory(t, other)
	if err := os.MkdirAll(dir+"/tree/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/tree/sub/f", "content", 0o751)
	if err := errors.Join(
		os.Symlink("sub/f", dir+"/tree/link"),
		unix.Mkfifo(dir+"/tree/fifo", 0o600),
		os.Lchown(dir+"/tree/sub/f", 65534, 65534),
		unix.Setxattr(dir+"/tree/sub/f", "user.e2b.key", []byte("value"), 0),
	); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(dir + "/tree/sub/f")
	if _, err := files.Move(t.Context(), dir+"/tree", other+"/to/tree", someone); err != nil {
		t.Fatal(err)
	}
	onlyEntries(t, dir)
	onlyEntries(t, other+"/to", "tree")
	onlyEntries(t, other+"/to/tree", "fifo", "link", "sub")
	moved, err := os.Stat(other + "/to/tree/link")
	if err != nil || moved.Mode() != before.Mode() || !moved.ModTime().Equal(before.ModTime()) || ownerOf(t, other+"/to/tree/sub/f") != someone {
		t.Errorf("the file changed: %v, %v", moved, err)
	}
	value := make([]byte, 16)
	if n, err := unix.Getxattr(other+"/to/tree/sub/f", "user.e2b.key", value); err == nil && string(value[:n]) != "value" {
		t.Errorf("attribute %q", value[:n])
	}
	// What does not fit stays where it was.
	write(t, dir+"/big", strings.Repeat("x", 9<<20), 0o644)
	_, err = files.Move(t.Context(), dir+"/big", other+"/big", someone)
	wantCode(t, err, fault.NoSpace, "disk space")
	onlyEntries(t, dir, "big")
	onlyEntries(t, other, "to")
}

// That the daemon has too much open passes, and is nobody's mistake.
func TestOutOfFiles(t *testing.T) {
	for _, errno := range []error{unix.EMFILE, unix.ENFILE} {
		err := Unreadable(&os.PathError{Op: "open", Path: "/f", Err: errno}, "/f")
		wantCode(t, err, fault.RateLimited, "too many files are open in the sandbox to read '/f'")
	}
}

func mountMemory(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

// A tree in which another file system is mounted has a place in it to which the kernel does
// not see that it cannot be moved.
func TestMoveAcrossIntoItself(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	if err := errors.Join(os.MkdirAll(dir+"/tree/mounted", 0o700), os.Symlink("tree/mounted", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/tree/f", "content", 0o600)
	mountMemory(t, dir+"/tree/mounted")
	for _, destination := range []string{dir + "/tree/mounted/x", dir + "/link/x"} {
		_, err := files.Move(t.Context(), dir+"/tree", destination, someone)
		wantCode(t, err, fault.InvalidRequest, "cannot be moved into itself")
	}
	onlyEntries(t, dir+"/tree/mounted")
	onlyEntries(t, dir+"/tree", "f", "mounted")
}

// The links of /proc cannot be removed, and what they lead to must not be instead.
func TestMoveOfALinkAcrossLeavesWhatItLeadsTo(t *testing.T) {
	dir, other, files := t.TempDir(), t.TempDir(), New(numbers{})
	mountMemory(t, other)
	write(t, dir+"/kept", "content", 0o600)
	t.Chdir(dir)
	if _, err := files.Move(t.Context(), "/proc/self/cwd", other+"/cwd", someone); err == nil {
		t.Error("a link of /proc was moved")
	}
	onlyEntries(t, dir, "kept")
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if _, err := files.Move(t.Context(), dir+"/link", other+"/link", someone); err != nil {
		t.Error(err)
	}
	onlyEntries(t, dir, "kept")
}

func replace(t *testing.T, path string, src io.Reader) error {
	t.Helper()
	r, err := Replace(path, someone)
	if err != nil {
		return err
	}
	defer r.Abort()
	if _, err := r.ReadFrom(src); err != nil {
		return err
	}
	return r.Commit()
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	if err := replace(t, dir+"/a/b/f", strings.NewReader("one")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir + "/a/b/f")
	if err != nil || info.Mode() != 0o644 || ownerOf(t, dir+"/a/b/f") != someone || ownerOf(t, dir+"/a") != someone {
		t.Fatalf("%v, %v", info, err)
	}
	if err := os.Chmod(dir+"/a/b/f", 0o711); err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(dir + "/a/b/f")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := replace(t, dir+"/a/b/f", strings.NewReader("two")); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(dir + "/a/b/f"); info.Mode() != 0o711 {
		t.Errorf("the mode became %v", info.Mode())
	}
	if old, _ := io.ReadAll(reader); string(old) != "one" {
		t.Errorf("a reader of the old file got %q", old)
	}
	if now, _ := os.ReadFile(dir + "/a/b/f"); string(now) != "two" {
		t.Errorf("the file has %q", now)
	}
	onlyEntries(t, dir+"/a/b", "f")
}

func TestReplaceFailingLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", "old", 0o600)
	broken := io.MultiReader(strings.NewReader("new but"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if err := replace(t, dir+"/f", broken); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("the error of the source became %v", err)
	}
	if now, _ := os.ReadFile(dir + "/f"); string(now) != "old" {
		t.Errorf("the file has %q", now)
	}
	onlyEntries(t, dir, "f")
}

func TestReplaceThroughLinks(t *testing.T) {
	dir := t.TempDir()
	for link, target := range map[string]string{"l1": "real/l2", "real/l2": "../target", "dangling": "later/made", "self": "self"} {
		if err := errors.Join(os.MkdirAll(dir+"/real", 0o755), os.Symlink(target, filepath.Join(dir, link))); err != nil {
			t.Fatal(err)
		}
	}
	if err := replace(t, dir+"/l1", strings.NewReader("through")); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(dir + "/target"); string(got) != "through" {
		t.Errorf("the target has %q", got)
	}
	if err := replace(t, dir+"/dangling", strings.NewReader("made")); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(dir + "/later/made"); string(got) != "made" {
		t.Errorf("the dangling link's target has %q", got)
	}
	wantCode(t, replace(t, dir+"/self", strings.NewReader("")), fault.InvalidRequest, "symbolic links")
}

// The kernel's own directories take no files, and the file that is there does exist.
func TestDirectoryThatTakesNoFiles(t *testing.T) {
	for _, path := range []string{"/proc/self/comm", "/proc/none"} {
		_, err := Replace(path, Owner{})
		if !fault.Is(err, fault.Forbidden) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{dir: "is a directory", dir + "/fifo": "not a regular file", "/dev/null": "not a regular file"} {
		_, _, err := Open(path)
		wantCode(t, err, fault.InvalidRequest, says)
		wantCode(t, replace(t, path, strings.NewReader("x")), fault.InvalidRequest, says)
	}
	_, _, err := Open(dir + "/none")
	wantCode(t, err, fault.NotFound, "path '"+dir+"/none' does not exist")
	onlyEntries(t, dir, "fifo")
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	wantCode(t, replace(t, dir+"/f", bytes.NewReader(make([]byte, 4<<20))), fault.NoSpace, "disk space")
	onlyEntries(t, dir)
}

func TestCopy(t *testing.T) {
	for _, size := range []int{0, 1, CopyBuffer - 1, CopyBuffer, CopyBuffer + 1, 3*CopyBuffer + 7} {
		want := bytes.Repeat([]byte("abcdefg"), size/7+1)[:size]
		var got bytes.Buffer
		n, err := Copy(&got, iotest.HalfReader(bytes.NewReader(want)))
		if err != nil || n != int64(size) || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes: copied %d, %v", size, n, err)
		}
	}
}
