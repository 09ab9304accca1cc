package filesystem

import (
	"path"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestResolve(t *testing.T) {
	for _, c := range []struct{ given, workdir, want string }{
		{"", "", "/home/u"},
		{"", "/work", "/work"},
		{"~", "/work", "/home/u"},
		{"~/", "", "/home/u"},
		{"~/a", "", "/home/u/a"},
		{"~/../../etc", "", "/etc"},
		{"a/b", "/work", "/home/u/a/b"},
		{"./~x", "", "/home/u/~x"},
		{"../v", "", "/home/v"},
		{"/a//b/./c/", "", "/a/b/c"},
		{"/../../x", "", "/x"},
		{"a/~", "", "/home/u/a/~"},
		{".", "/work", "/home/u"},
		{" ", "", "/home/u/ "},
	} {
		got, err := Resolve(c.given, "/home/u", c.workdir)
		if err != nil || got != c.want {
			t.Errorf("Resolve(%q, workdir %q) = %q, %v; want %q", c.given, c.workdir, got, err, c.want)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	for given, says := range map[string]string{
		"a\x00/../b":                      "NUL",
		"a\x00b":                          "NUL",
		"~other":                          "another user's home",
		"~other/x":                        "another user's home",
		strings.Repeat("x", maxName+1):    "too long a name",
		strings.Repeat("/y", maxPath/2+1): "path is too long",
		"/ok/" + strings.Repeat("é", 200) + "/x": "too long a name",
	} {
		_, err := Resolve(given, "/home/u", "")
		if !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), says) {
			t.Errorf("Resolve(%.20q…) = %v, want an invalid request that says %q", given, err, says)
		}
	}
}

func FuzzResolve(f *testing.F) {
	for _, given := range []string{"", "~", "~/x", "~o", "/", "//", "/a/../..", "..", "a\x00", "\xff", "./.", strings.Repeat("a/", 300), strings.Repeat("n", 256)} {
		f.Add(given, "/home/u", "")
		f.Add(given, "/", "/srv/dir")
	}
	f.Fuzz(func(t *testing.T, given, home, workdir string) {
		got, err := Resolve(given, home, workdir)
		if err != nil {
			if !fault.Is(err, fault.InvalidRequest) {
				t.Fatalf("an error that does not blame the path: %v", err)
			}
			return
		}
		if !strings.HasPrefix(got, "/") || path.Clean(got) != got || len(got) > maxPath {
			t.Fatalf("Resolve(%q, %q, %q) = %q, which is not an absolute clean path", given, home, workdir, got)
		}
		if strings.ContainsRune(got, 0) {
			t.Fatal("a NUL byte came through")
		}
		again, err := Resolve(got, home, workdir)
		if err != nil || again != got {
			t.Fatalf("resolving %q again gives %q, %v", got, again, err)
		}
	})
}
