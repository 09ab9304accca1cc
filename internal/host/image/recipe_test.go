package image

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testRecipe(t *testing.T) (recipe, hostPaths) {
	t.Helper()
	host := testHostPaths(t)
	return mustRecipe(t, host), host
}

func testHostPaths(t *testing.T) hostPaths {
	t.Helper()
	return hostPaths{
		apt:     testHost(t, map[string]string{"sources.list": "deb http://joe:secret@mirror.test/debian bookworm main"}),
		localCA: filepath.Join(t.TempDir(), "ca"),
	}
}

func mustRecipe(t *testing.T, host hostPaths) recipe {
	t.Helper()
	r, err := baseRecipe(context.Background(), host)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKeyFollowsTheRecipe(t *testing.T) {
	first, host := testRecipe(t)
	if len(first.key()) != hashDigits {
		t.Fatalf("the key is %q", first.key())
	}
	if again := mustRecipe(t, host); again.key() != first.key() {
		t.Fatal("the same recipe has another key")
	}
	changed := func(why string, r recipe) {
		t.Helper()
		if r.key() == first.key() {
			t.Errorf("the key is the same after %s", why)
		}
	}
	r := first
	r.Packages = append([]string{"htop"}, r.Packages...)
	changed("a new package", r)
	r = first
	r.Script = append([]byte("#"), r.Script...)
	changed("another script", r)
	r = first
	r.Suite = "trixie"
	changed("another suite", r)

	writeTestFile(t, filepath.Join(host.localCA, "corp.crt"), "one")
	withCA := mustRecipe(t, host)
	changed("a new CA", withCA)
	writeTestFile(t, filepath.Join(host.localCA, "corp.crt"), "two")
	if mustRecipe(t, host).key() == withCA.key() {
		t.Error("the key is the same after a CA changed")
	}
	writeTestFile(t, filepath.Join(host.apt.etc, "sources.list"), "deb http://other.test/debian bookworm main")
	changed("another mirror", mustRecipe(t, host))
}

func TestGuestGetsNoSecretsOfTheHost(t *testing.T) {
	r, _ := testRecipe(t)
	r.addAptSettings([]aptSetting{
		{"Acquire::http::Proxy", "http://joe:secret@proxy.test:3128"},
		{"Acquire::Check-Valid-Until", "false"},
	})
	if !strings.Contains(string(r.aptOptions), "proxy.test") {
		t.Error("the build does not use the host's proxy")
	}
	for name, f := range r.Overlay {
		if strings.Contains(string(f.Data), "secret") || strings.Contains(string(f.Data), "proxy.test") {
			t.Errorf("/%s contains what is the host's: %s", name, f.Data)
		}
	}
	if got := string(r.Overlay["etc/apt/sources.list.d/debian.sources"].Data); !strings.Contains(got, "http://mirror.test/debian") {
		t.Errorf("the guest's sources are %q", got)
	}
	if got := string(r.Overlay["etc/apt/apt.conf.d/91host"].Data); !strings.Contains(got, "Check-Valid-Until") {
		t.Errorf("the guest's apt settings are %q", got)
	}
}

func TestKeysOfSourcesComeAlong(t *testing.T) {
	_, host := testRecipe(t)
	key := filepath.Join(host.apt.etc, "keyrings/mine.gpg")
	writeTestFile(t, key, "a key")
	host.apt.override = filepath.Join(host.apt.etc, "mine")
	writeTestFile(t, host.apt.override, "deb [signed-by="+key+"] http://mine.test/d bookworm main")
	if got := mustRecipe(t, host).Overlay[strings.TrimPrefix(key, "/")]; string(got.Data) != "a key" {
		t.Fatalf("the key is %q", got.Data)
	}
}

func TestAptSettings(t *testing.T) {
	dump := "Acquire::Check-Valid-Until false\nAcquire::Check-Date true\nAcquire::http::Proxy http://p.test:1\n" +
		"Acquire::https::Proxy::m.test DIRECT\nAcquire::http::Proxy-Auto-Detect /bin/x\nAcquire::Languages none\nAcquire:: \nAcquire::http::Proxy a\"b\nx"
	want := []aptSetting{
		{"Acquire::Check-Valid-Until", "false"},
		{"Acquire::http::Proxy", "http://p.test:1"},
		{"Acquire::https::Proxy::m.test", "DIRECT"},
	}
	if diff := cmp.Diff(want, parseAptSettings(dump)); diff != "" {
		t.Fatal(diff)
	}
}

func TestScriptIsValidShell(t *testing.T) {
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = strings.NewReader(string(customizeScript))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
