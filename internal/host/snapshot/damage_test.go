package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestDamageIsFoundAndNamed(t *testing.T) {
	edit := func(name string, change func(file *os.File) error) func(string) error {
		return func(dir string) error {
			file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return errors.Join(change(file), file.Close())
		}
	}
	flip := func(at int64) func(*os.File) error {
		return func(file *os.File) error {
			var b [1]byte
			if _, err := file.ReadAt(b[:], at); err != nil {
				return err
			}
			b[0] ^= 1
			_, err := file.WriteAt(b[:], at)
			return err
		}
	}
	const large = 2*pieceSize + 12345
	for name, test := range map[string]struct {
		damage func(dir string) error
		want   []string
	}{
		"first byte":     {edit("pages.img", flip(0)), []string{"pages.img differs", "MiB 0 on"}},
		"middle byte":    {edit("pages.img", flip(pieceSize+7)), []string{"pages.img differs", "MiB 16 on"}},
		"last byte":      {edit("pages.img", flip(large-1)), []string{"pages.img differs", "MiB 32 on"}},
		"one byte short": {edit("pages.img", func(f *os.File) error { return f.Truncate(large - 1) }), []string{"pages.img has 33566776 bytes and not 33566777"}},
		"one byte more":  {edit("empty.img", func(f *os.File) error { return f.Truncate(1) }), []string{"empty.img has 1 bytes and not 0"}},
		"missing":        {func(dir string) error { return os.Remove(filepath.Join(dir, "checkpoint.img")) }, []string{"checkpoint.img is missing"}},
		"extra":          {func(dir string) error { return os.WriteFile(filepath.Join(dir, "other.img"), nil, 0o600) }, []string{"other.img is in it"}},
		"a link": {func(dir string) error {
			path := filepath.Join(dir, "checkpoint.img")
			return errors.Join(os.Rename(path, filepath.Join(dir, "..", "away")), os.Symlink("../away", path))
		}, []string{"checkpoint.img cannot be read"}},
		"a directory": {func(dir string) error {
			path := filepath.Join(dir, "checkpoint.img")
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		}, []string{"checkpoint.img is no regular file"}},
		"all gone": {os.RemoveAll, []string{"cannot be listed"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			commitNew(t, s, "sn1", state)
			commitNew(t, s, "sn2", small)
			if err := test.damage(filepath.Join(s.path("sn1"), stateName)); err != nil {
				t.Fatal(err)
			}
			err := s.Verify(t.Context(), "sn1")
			wantCode(t, err, fault.Internal)
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v is not ErrDamaged", err)
			}
			for _, want := range append(test.want, "sn1") {
				if !strings.Contains(fault.MessageOf(err), want) {
					t.Errorf("the message %q does not say %q", fault.MessageOf(err), want)
				}
			}
			if err := s.Verify(t.Context(), "sn2"); err != nil {
				t.Errorf("the other one: %v", err)
			}
		})
	}
}

func TestADamagedManifestIsListedAndNeverUsed(t *testing.T) {
	for name, damage := range map[string]func(data []byte) []byte{
		"truncated": func(data []byte) []byte { return data[:len(data)/2] },
		"empty":     func([]byte) []byte { return nil },
		"flipped": func(data []byte) []byte {
			return bytes.Replace(data, []byte("secret"), []byte("sfcret"), 1)
		},
		"gone": nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			commitNew(t, s, "sn1", small)
			path := filepath.Join(dir, "sn1", manifestName)
			if damage == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s = open(t, dir)
			all := s.List()
			if len(all) != 1 || all[0].ID != "sn1" || all[0].Damaged == "" || all[0].Token != "" || all[0].Bytes == 0 {
				t.Fatalf("listed %+v", all)
			}
			_, _, err := s.Use("sn1")
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("used: %v", err)
			}
			if err := s.Verify(t.Context(), "sn1"); !errors.Is(err, ErrDamaged) {
				t.Errorf("verified: %v", err)
			}
			if err := s.Remove("sn1"); err != nil {
				t.Error(err)
			}
			if left := names(t, dir); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

func TestASnapshotUnderAForeignNameIsDamaged(t *testing.T) {
	dir := t.TempDir()
	commitNew(t, open(t, dir), "sn1", small)
	if err := os.Rename(filepath.Join(dir, "sn1"), filepath.Join(dir, "sn2")); err != nil {
		t.Fatal(err)
	}
	if snap, err := open(t, dir).Get("sn2"); err != nil || snap.Damaged == "" {
		t.Errorf("%+v, %v", snap, err)
	}
}

// A directory that the kernel does not list, as on a bad disk, is no reason to be without the
// others. That of a process that has ended is such a one.
func TestADirectoryThatCannotBeReadIsDamaged(t *testing.T) {
	dir := t.TempDir()
	commitNew(t, open(t, dir), "sn1", small)
	bad := filepath.Join(dir, "sn2")
	if err := os.Mkdir(bad, dirMode); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.CommandContext(t.Context(), "sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount(fmt.Sprintf("/proc/%d", sleeper.Process.Pid), bad, "", unix.MS_BIND, "")
	t.Cleanup(func() {
		if err := unix.Unmount(bad, 0); err != nil {
			t.Error(err)
		}
	})
	_ = sleeper.Process.Kill() // it sleeps
	_ = sleeper.Wait()         // it was killed
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if snap, err := s.Get("sn2"); err != nil || snap.Damaged == "" {
		t.Errorf("%+v, %v", snap, err)
	}
	if snap, err := s.Get("sn1"); err != nil || snap.Damaged != "" {
		t.Errorf("the other: %+v, %v", snap, err)
	}
}
