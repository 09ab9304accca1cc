package gvisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettingsOfTheMachine(t *testing.T) {
	for _, c := range []struct {
		name      string
		set       func(string) error
		was, want string
	}{
		{"few process ids", allowManyTasks, "32768\n", "4194304"},
		{"as many as there can be", allowManyTasks, "4194304\n", "4194304\n"},
		{"small pages", enlargeSharedPages, "always inherit within_size advise [never]\n", "always"},
		{"a choice that somebody made", enlargeSharedPages, "always inherit within_size [advise] never\n", "always inherit within_size [advise] never\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "setting")
			if err := os.WriteFile(file, []byte(c.was), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.set(file); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file); err != nil || string(got) != c.want {
				t.Errorf("%q became %q, want %q (%v)", c.was, got, c.want, err)
			}
		})
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if err := enlargeSharedPages(missing); err != nil {
		t.Errorf("a kernel without the setting: %v", err)
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("it made a setting that the kernel does not have")
	}
}

// The kernel takes the setting, from a driver of this machine.
func TestDriverPreparesTheMachine(t *testing.T) {
	choice, err := os.ReadFile(sharedPagesFile)
	if err != nil || !strings.Contains(string(choice), "[always]") && !strings.Contains(string(choice), "[never]") {
		t.Skipf("shared memory is given out in another way here: %s %v", choice, err)
	}
	if err := os.WriteFile(sharedPagesFile, []byte("never"), 0); err != nil {
		t.Fatal(err)
	}
	newPlace(t)
	if choice, err = os.ReadFile(sharedPagesFile); err != nil || !strings.Contains(string(choice), "[always]") {
		t.Errorf("shared memory comes in small pages: %s %v", choice, err)
	}
}
