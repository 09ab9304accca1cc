package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func writeTestFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), fileMode); err != nil {
		t.Fatal(err)
	}
}

// addImage commits a file of the given text as an image.
func addImage(t *testing.T, s *Store, name, stem, text string) Image {
	t.Helper()
	tmp := filepath.Join(s.dir, workPrefix+"made")
	writeTestFile(t, tmp, text)
	img, err := s.commit(tmp, stem, meta{Name: name, SizeBytes: int64(len(text)), DefaultUser: "u", CreatedAt: time.Unix(1, 0).UTC()})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestLookup(t *testing.T) {
	store := newTestStore(t)
	_, err := store.Lookup("base")
	if !fault.Is(err, fault.NotFound) || !strings.Contains(fault.MessageOf(err), `template "base" does not exist`) {
		t.Fatalf("an empty store gave %v", err)
	}
	old := addImage(t, store, "base", "base-1", "old")
	now := addImage(t, store, "base", "base-2", "newer")
	addImage(t, store, "other", "other-1", "x")
	if got, err := store.Lookup("base"); err != nil || got != now {
		t.Fatalf("Lookup gave %+v, %v", got, err)
	}
	if text, err := os.ReadFile(old.Path); err != nil || string(text) != "old" {
		t.Fatalf("the older image, which may be in use, was changed: %q, %v", text, err)
	}
	for _, name := range []string{"nosuch", "", "../base", "a\x00b", ".", strings.Repeat("x", 300), "base-1"} {
		_, err := store.Lookup(name)
		if !fault.Is(err, fault.NotFound) || !strings.Contains(fault.MessageOf(err), "there are: base, other") {
			t.Errorf("Lookup(%q) gave %v", name, err)
		}
	}
	images, err := store.List()
	if err != nil || len(images) != 2 || images[0] != now {
		t.Fatalf("List gave %+v, %v", images, err)
	}
}

func TestDamagedImageIsMissing(t *testing.T) {
	store := newTestStore(t)
	img := addImage(t, store, "base", "base-1", "whole")
	if err := os.Truncate(img.Path, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Lookup("base"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a truncated image gave %v", err)
	}
	addImage(t, store, "base", "base-1", "whole")
	writeTestFile(t, filepath.Join(store.dir, "base-1"+metaExt), "{")
	if _, err := store.Lookup("base"); !fault.Is(err, fault.NotFound) {
		t.Errorf("damaged metadata gave %v", err)
	}
	for _, pointer := range []string{"", "../../etc/passwd", "nothing"} {
		writeTestFile(t, filepath.Join(store.dir, "base"+currentExt), pointer)
		if _, err := store.Lookup("base"); !fault.Is(err, fault.NotFound) {
			t.Errorf("the pointer %q gave %v", pointer, err)
		}
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := t.TempDir()
	store, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	img := addImage(t, store, "base", "base-1", "x")
	leftover := filepath.Join(dir, workPrefix+"123", "root", "etc", "passwd")
	writeTestFile(t, leftover, "x")

	lock, _, err := tryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(leftover); err != nil {
		t.Fatalf("the work of a live builder was removed: %v", err)
	}
	lock.release()
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, workPrefix+"123")); !os.IsNotExist(err) {
		t.Fatalf("leftovers of a killed build are still there: %v", err)
	}
	if got, err := store.Lookup("base"); err != nil || got != img {
		t.Fatalf("the finished image did not survive: %+v, %v", got, err)
	}
}

func TestAdoptMakesAnOlderImageCurrent(t *testing.T) {
	store := newTestStore(t)
	first := addImage(t, store, "base", "base-1", "x")
	addImage(t, store, "base", "base-2", "y")
	if got, err := store.adopt("base-1"); err != nil || got != first {
		t.Fatal(got, err)
	}
	if got, err := store.Lookup("base"); err != nil || got != first {
		t.Fatalf("Lookup gave %+v, %v", got, err)
	}
}
