package filesystem

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func upload(t *testing.T, path, content string, metadata map[string]string) bool {
	t.Helper()
	r, err := Replace(path, someone)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Abort()
	if _, err := r.ReadFrom(strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	kept, err := r.SetMetadata(metadata)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(); err != nil {
		t.Fatal(err)
	}
	return kept
}

func TestMetadataGoesWithTheContent(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	want := func(path string, metadata map[string]string) {
		t.Helper()
		entry, err := files.Stat(path)
		if err != nil || !maps.Equal(entry.Metadata, metadata) {
			t.Errorf("%s has %v, %v; want %v", path, entry.Metadata, err, metadata)
		}
	}
	if !upload(t, dir+"/f", "1", map[string]string{"a": "1", "b": ""}) {
		t.Fatal("metadata was dropped")
	}
	want(dir+"/f", map[string]string{"a": "1", "b": ""})
	// What others keep there shows up too, and what they keep elsewhere stays.
	for name, value := range map[string]string{"user.e2b.c": "3", "user.e2b.": "odd", "user.other": "kept"} {
		if err := unix.Setxattr(dir+"/f", name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	want(dir+"/f", map[string]string{"a": "1", "b": "", "c": "3"})
	list, err := files.List(t.Context(), dir, 1)
	if err != nil || len(list) != 1 || list[0].Metadata["c"] != "3" {
		t.Errorf("listed %+v, %v", list, err)
	}
	if err := unix.Symlink("f", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	want(dir+"/link", map[string]string{"a": "1", "b": "", "c": "3"})
	moved, err := files.Move(t.Context(), dir+"/f", dir+"/g", someone)
	if err != nil || moved.Metadata["a"] != "1" {
		t.Errorf("moved %+v, %v", moved, err)
	}
	upload(t, dir+"/g", "2", map[string]string{"d": "4"})
	want(dir+"/g", map[string]string{"d": "4"})
	upload(t, dir+"/g", "3", nil)
	want(dir+"/g", nil)
	value := make([]byte, 16)
	if n, err := unix.Getxattr(dir+"/g", "user.other", value); err != nil || string(value[:n]) != "kept" {
		t.Errorf("another's attribute is %q, %v", value[:max(n, 0)], err)
	}
}

func TestManyAttributes(t *testing.T) {
	path := t.TempDir() + "/f"
	want := make(map[string]string)
	for _, c := range "abcdefgh" {
		want[strings.Repeat(string(c), 200)] = "v"
	}
	upload(t, path, "", want)
	if got := metadata(path); !maps.Equal(got, want) {
		t.Errorf("%d of %d came back", len(got), len(want))
	}
}

// Where there are no extended attributes the file is written all the same.
func TestMetadataIsDroppedWhereItCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	err := unix.Mount("none", dir, "ramfs", 0, "")
	if errors.Is(err, unix.ENODEV) {
		t.Skip("this kernel has no such file system")
	}
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if upload(t, dir+"/f", "content", map[string]string{"a": "1"}) {
		t.Skip("this file system keeps attributes now")
	}
	onlyEntries(t, dir, "f")
	if got := metadata(dir + "/f"); got != nil {
		t.Errorf("metadata %v", got)
	}
}

func TestCheckMetadata(t *testing.T) {
	for says, metadata := range map[string]map[string]string{
		"is empty":                       {"": "v"},
		"has 247 bytes of at most 246":   {strings.Repeat("k", 247): "v"},
		"not printable":                  {"k": "a\nb"},
		`"k\x7f" is not printable`:       {"k\x7f": "v"},
		"has 4106 bytes of at most 4096": {"k": strings.Repeat("v", 4096)},
	} {
		wantCode(t, CheckMetadata(metadata), fault.InvalidRequest, says)
	}
	for _, metadata := range []map[string]string{
		nil, {strings.Repeat("k", 246): ""}, {"k": strings.Repeat("v", maxMetadata-len(metadataPrefix)-1)}, {" ~": "~ "},
	} {
		if err := CheckMetadata(metadata); err != nil {
			t.Error(err)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add("key", "value")
	f.Add("", "")
	f.Add(strings.Repeat("k", 247), "\x00")
	f.Add("k=", strings.Repeat("v", 4000))
	path := f.TempDir() + "/f"
	f.Fuzz(func(t *testing.T, key, value string) {
		given := map[string]string{key: value}
		if err := CheckMetadata(given); err != nil {
			if !fault.Is(err, fault.InvalidRequest) {
				t.Fatal(err)
			}
			return
		}
		r, err := Replace(path, someone)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Abort()
		if _, err := r.SetMetadata(given); err != nil {
			if !fault.Is(err, fault.NoSpace) { // ext4 has a block for all of them
				t.Fatal(err)
			}
			return
		}
		if err := r.Commit(); err != nil {
			t.Fatal(err)
		}
		if got := metadata(path); !maps.Equal(got, given) {
			t.Fatalf("%q came back as %q", given, got)
		}
	})
}

func TestComposeLeavesAllAsItWasWhenItFails(t *testing.T) {
	dir, files := t.TempDir(), New(numbers{})
	write(t, dir+"/a", "1", 0o644)
	write(t, dir+"/to", "old", 0o644)
	_, err := files.Compose(t.Context(), []string{dir + "/a", dir + "/none"}, dir+"/to", someone)
	wantCode(t, err, fault.NotFound, dir+"/none")
	onlyEntries(t, dir, "a", "to")
	entry, err := files.Compose(t.Context(), []string{dir + "/a", dir + "/to", dir + "/a"}, dir+"/to", someone)
	if err != nil || entry.Size != 5 || ownerOf(t, dir+"/to") != someone {
		t.Errorf("composed %+v, %v", entry, err)
	}
	onlyEntries(t, dir, "to")
}
