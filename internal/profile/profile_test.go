package profile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestWriteThenRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "wrenn", "profile.json")
	for _, want := range []Profile{{"http://127.0.0.1:1", "wrn_a"}, {"http://127.0.0.1:2", "wrn_b"}} {
		if err := Write(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path)
		if err != nil || got != want {
			t.Fatalf("read %+v, %v; want %+v", got, err, want)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != fileMode {
			t.Fatalf("mode %v, %v; want 0600", info.Mode(), err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries beside the profile, %v", len(entries), err)
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, "none.json")); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("a profile that is not there: %v", err)
	}
	for text, want := range map[string]string{
		"{":                            "not JSON",
		`{"api_url":"http://x"}`:       "lacks",
		`{"api_key":"wrn_x"}`:          "lacks",
		`{"api_url":"","api_key":"k"}`: "lacks",
	} {
		path := filepath.Join(dir, "p.json")
		if err := os.WriteFile(path, []byte(text), fileMode); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); fault.CodeOf(err) != fault.InvalidRequest || !strings.Contains(fault.MessageOf(err), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestPath(t *testing.T) {
	t.Setenv("HOME", "/home/someone")
	for config, want := range map[string]string{
		"":             "/home/someone/.config/wrenn/profile.json",
		"relative/dir": "/home/someone/.config/wrenn/profile.json",
		"/etc/x":       "/etc/x/wrenn/profile.json",
	} {
		t.Setenv("XDG_CONFIG_HOME", config)
		if got, err := Path(); err != nil || got != want {
			t.Errorf("XDG_CONFIG_HOME=%q: %q, %v", config, got, err)
		}
	}
}
