package cli

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// archiveOf makes a tar archive; a directory's name ends in a slash, a symlink's header
// has a Linkname.
func archiveOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		contents := []byte("contents of " + h.Name)
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(contents))
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(contents); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// unpackInto extracts an archive below a directory beside which nothing may change.
func unpackInto(t testing.TB, archive []byte) (target string, errOut string, err error) {
	t.Helper()
	around := t.TempDir()
	target = filepath.Join(around, "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(around, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var warned bytes.Buffer
	tr := &transfer{streams: streams{err: &warned}}
	_, err = tr.unpack(root, bytes.NewReader(archive))

	if text, readErr := os.ReadFile(outside); readErr != nil || string(text) != "untouched" {
		t.Fatalf("the archive changed a file outside: %q, %v", text, readErr)
	}
	if info, statErr := os.Stat(outside); statErr != nil || info.Mode() != 0o600 {
		t.Fatalf("the archive changed a mode outside: %v, %v", info.Mode(), statErr)
	}
	entries, readErr := os.ReadDir(around)
	if readErr != nil || len(entries) != 2 {
		t.Fatalf("the archive made something outside: %v, %v", entries, readErr)
	}
	return target, warned.String(), err
}

// What a guest's archive says must never reach a file outside the target.
func TestUnpackStaysInside(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"dots":              {{Name: "../outside", Typeflag: tar.TypeReg, Mode: 0o644}},
		"dots in the midst": {{Name: "a/../../outside", Typeflag: tar.TypeReg, Mode: 0o644}},
		"directory outside": {{Name: "../made/", Typeflag: tar.TypeDir, Mode: 0o755}},
		"through a symlink": {
			{Name: "link", Typeflag: tar.TypeSymlink, Linkname: ".."},
			{Name: "link/outside", Typeflag: tar.TypeReg, Mode: 0o644},
		},
		"mode through a symlink": {
			{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o777},
			{Name: "dir", Typeflag: tar.TypeSymlink, Linkname: "../outside"},
		},
		"symlink outside": {{Name: "../made", Typeflag: tar.TypeSymlink, Linkname: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := unpackInto(t, archiveOf(t, headers...)); err == nil {
				t.Error("an archive that leads outside was not refused")
			}
		})
	}
}

// A file takes the place of a symlink; it is not written through it.
func TestUnpackReplacesSymlinks(t *testing.T) {
	target, _, err := unpackInto(t, archiveOf(t,
		tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "../outside"},
		tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o644},
	))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(filepath.Join(target, "x")); err != nil || !info.Mode().IsRegular() {
		t.Fatalf("x is %v, %v", info.Mode(), err)
	}
}

func TestUnpackKeepsModesAndDropsPrivilege(t *testing.T) {
	target, warned, err := unpackInto(t, archiveOf(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o777},
		tar.Header{Name: "./closed/", Typeflag: tar.TypeDir, Mode: 0o500},
		tar.Header{Name: "./closed/setuid", Typeflag: tar.TypeReg, Mode: 0o4755},
		tar.Header{Name: "./fifo", Typeflag: tar.TypeFifo},
	))
	if err != nil {
		t.Fatal(err)
	}
	if warned != "wrenn: fifo is left out: it is neither file, directory nor symlink\n" {
		t.Errorf("warned %q", warned)
	}
	for name, want := range map[string]fs.FileMode{"closed": fs.ModeDir | 0o500, "closed/setuid": 0o755} {
		if info, err := os.Stat(filepath.Join(target, name)); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(target, "fifo")); err == nil {
		t.Error("a named pipe was made")
	}
}

func TestUnpackTellsOfACutArchive(t *testing.T) {
	whole := archiveOf(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644})
	if _, _, err := unpackInto(t, whole[:520]); err == nil {
		t.Error("half an archive was taken for the whole")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archiveOf(f, tar.Header{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644}))
	f.Add(archiveOf(f,
		tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../.."},
		tar.Header{Name: "d/l/outside", Typeflag: tar.TypeReg, Mode: 0o644},
	))
	f.Add([]byte("no archive"))
	f.Fuzz(func(t *testing.T, archive []byte) {
		_, _, _ = unpackInto(t, archive) // it checks what is outside
	})
}

func TestPackLeavesOutWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o640); err != nil {
		t.Fatal(err)
	}
	makeFIFO(t, filepath.Join(dir, "pipe"))
	var archive, warned bytes.Buffer
	n, err := (&transfer{streams: streams{err: &warned}}).pack(dir, &archive)
	if err != nil || n != int64(len("text")) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	var names []string
	for tr := tar.NewReader(&archive); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s tells whose it is here", h.Name)
		}
		names = append(names, h.Name)
	}
	if len(names) != 2 || names[0] != "./" || names[1] != "file" || warned.Len() == 0 {
		t.Fatalf("packed %v, warned %q", names, &warned)
	}
}

func TestPackTakesNamesAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	odd := "we\nird \xff"
	if err := os.WriteFile(filepath.Join(dir, odd), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if _, err := (&transfer{}).pack(dir, &archive); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&archive)
	for _, want := range []string{"./", odd} {
		if h, err := tr.Next(); err != nil || h.Name != want {
			t.Errorf("packed %v, want %q: %v", h, want, err)
		}
	}
}
