package identity

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

func TestAnotherIdMakesAnotherMachine(t *testing.T) {
	users, dir := testUsers(t)
	system := System{MachineIDPath: filepath.Join(dir, "machine-id"), SSHDir: dir, SSHPidPath: filepath.Join(dir, "sshd.pid")}
	put(t, system.MachineIDPath, "")
	id := New(users, system, slog.New(slog.DiscardHandler))
	seen := map[string]bool{}
	apply := func(sandbox string) string {
		t.Helper()
		if err := id.Apply(Update{SandboxID: sandbox}, ""); err != nil {
			t.Fatal(err)
		}
		machine := content(t, system.MachineIDPath)
		if !regexp.MustCompile(`^[0-9a-f]{32}\n$`).MatchString(machine) {
			t.Fatalf("machine id %q", machine)
		}
		return machine
	}
	for _, sandbox := range []string{"sb1", "sb2", "sb1"} {
		machine := apply(sandbox)
		if seen[machine] {
			t.Errorf("%s is a machine that was there before", sandbox)
		}
		seen[machine] = true
		if again := apply(sandbox); again != machine {
			t.Errorf("the same sandbox became another machine")
		}
	}
	if keys, _ := filepath.Glob(dir + "/ssh_host_*"); len(keys) > 0 {
		t.Errorf("a sandbox without an SSH server got %v", keys)
	}
}

// A copy is told who it is by a clock that may have been set back since its original was.
func TestACopyTakesOverWhatIsOlder(t *testing.T) {
	users, _ := testUsers(t)
	id := New(users, System{}, slog.New(slog.DiscardHandler))
	for _, step := range []struct {
		up       Update
		accepted string // as the token from then on
	}{
		{Update{SandboxID: "sb1", Token: "one", Timestamp: time.Unix(2000, 0)}, "one"},
		{Update{SandboxID: "sb1", Token: "old", Timestamp: time.Unix(1000, 0)}, "one"},
		{Update{SandboxID: "sb2", Token: "two", Timestamp: time.Unix(1000, 0)}, "two"},
		{Update{SandboxID: "sb2", Token: "old", Timestamp: time.Unix(999, 0)}, "two"},
		{Update{SandboxID: "sb2", Token: "new", Timestamp: time.Unix(1001, 0)}, "new"},
	} {
		if err := id.Apply(step.up, id.token); err != nil {
			t.Fatal(err)
		}
		if !id.Authorized(step.accepted) {
			t.Errorf("after %+v the token is %q", step.up, id.token)
		}
	}
}

// A copy's host keys are others, of the same kinds, and a server can read them.
func TestHostKeysAreRenewed(t *testing.T) {
	keygen := testenv.Program(t, "ssh-keygen")
	dir := t.TempDir()
	old := map[string]string{}
	kinds := []string{"ed25519", "ecdsa", "rsa", "dsa"}
	for _, kind := range kinds {
		path := filepath.Join(dir, "ssh_host_"+kind+"_key")
		put(t, path, "old")
		put(t, path+".pub", "old")
		old[path] = "old"
	}
	system := System{SSHDir: dir, SSHPidPath: filepath.Join(dir, "sshd.pid")}
	put(t, system.SSHPidPath, "1 is not to be told")
	for range 2 {
		if failed := system.renew(func(err error) { t.Error(err) }); len(failed) > 0 {
			t.Fatal(failed)
		}
		awaitFile(t, filepath.Join(dir, "ssh_host_rsa_key.pub"))
		for _, kind := range kinds[:3] {
			path := filepath.Join(dir, "ssh_host_"+kind+"_key")
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != hostKeyMode {
				t.Fatalf("%s: %v, %v", path, info, err)
			}
			secret := content(t, path)
			if secret == old[path] {
				t.Errorf("%s is what it was", path)
			}
			old[path] = secret
			read, err := exec.CommandContext(t.Context(), keygen, "-y", "-f", path).Output()
			if err != nil {
				t.Fatalf("%s cannot be read: %v", path, err)
			}
			public := content(t, path+".pub")
			if got := strings.Join(strings.Fields(string(read))[:2], " "); got+"\n" != public {
				t.Errorf("%s.pub is %q, of the secret key it is %q", path, public, got)
			}
		}
	}
	if left, _ := filepath.Glob(dir + "/ssh_host_dsa*"); len(left) > 0 {
		t.Errorf("keys of a kind that no server uses any more are still there: %v", left)
	}
}

// awaitFile waits until there is a file, whole: it is written after the secret key.
func awaitFile(t *testing.T, path string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		if data, err := os.ReadFile(path); err == nil && strings.HasSuffix(string(data), "\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s never came", path)
		}
	}
}
