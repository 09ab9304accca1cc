package identity

import (
	"bytes"
	"crypto/x509/pkix"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// inTime fails the test if f waits for something.
func inTime(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: waits", what)
		return nil
	}
}

// pipeAt puts a named pipe, which nobody writes to, in the place of a file.
func pipeAt(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A sandbox whose own root has removed the default user is still to be resumed.
func TestDefaultUserThatIsGone(t *testing.T) {
	users, dir := testUsers(t)
	id := New(users, System{}, slog.New(slog.DiscardHandler))
	if err := id.Apply(Update{DefaultUser: "dev", Workdir: "/one"}, ""); err != nil {
		t.Fatal(err)
	}
	put(t, dir+"/passwd", "root:x:0:0:root:/root:/bin/bash\n")
	if err := id.Apply(Update{DefaultUser: "dev", Workdir: "/two"}, ""); err != nil || id.Workdir() != "/two" {
		t.Errorf("the same user again: %v, directory %s", err, id.Workdir())
	}
	if _, err := id.User(""); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("commands of a user who is gone: %v", err)
	}
	if err := id.Apply(Update{DefaultUser: "twin"}, ""); !fault.Is(err, fault.InvalidRequest) {
		t.Errorf("another user who is not there: %v", err)
	}
	if err := os.Remove(dir + "/passwd"); err != nil {
		t.Fatal(err)
	}
	if err := id.Apply(Update{DefaultUser: "dev"}, ""); err != nil {
		t.Errorf("without any accounts: %v", err)
	}
}

// Whatever root has made of the files of the system, nothing waits for it.
func TestFilesThatAreNoFiles(t *testing.T) {
	users, dir := testUsers(t)
	var log bytes.Buffer
	id := New(users, System{
		RunDir: dir + "/run", HostsPath: dir + "/hosts", ResolvConfPath: dir + "/resolv.conf", MachineIDPath: dir + "/machine-id",
		SSHDir: dir, SSHPidPath: dir + "/sshd.pid", Trust: TrustStore{Bundles: []string{dir + "/bundle"}, Hashed: dir, Local: dir},
	}, slog.New(slog.NewTextHandler(&log, nil)))
	up := Update{
		SandboxID: "one", TemplateID: "base", DefaultUser: "dev", Hostname: "box", Nameservers: []string{"10.0.0.1"}, EventsIP: "10.0.0.2",
	}
	if err := id.Apply(up, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group", "hosts", "machine-id", "sshd.pid", "ssh_host_ecdsa_key", "bundle"} {
		pipeAt(t, dir+"/"+name)
	}
	for _, name := range []string{"resolv.conf", "run"} { // in the place of a file a directory, and the other way round
		if err := os.RemoveAll(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	put(t, dir+"/run", "")
	if err := os.MkdirAll(dir+"/resolv.conf/x", 0o755); err != nil {
		t.Fatal(err)
	}
	up.SandboxID = "two"
	if err := inTime(t, "an update", func() error { return id.Apply(up, "") }); err != nil {
		t.Errorf("an update: %v", err)
	}
	for _, says := range []string{"write the hosts file", "write the resolver's file", "make the run directory"} {
		if !strings.Contains(log.String(), says) {
			t.Errorf("the log does not say %q:\n%s", says, &log)
		}
	}
	err := inTime(t, "a look-up", func() error { _, err := id.User(""); return err })
	if !fault.Is(err, fault.Internal) || !strings.Contains(fault.MessageOf(err), "ordinary files") {
		t.Errorf("a look-up: %v", err)
	}
	err = inTime(t, "a look-up of root", func() error {
		user, err := id.User("root")
		if user.UID != 0 || user.GID != 0 || user.Home != "/root" || user.Shell != "/bin/sh" {
			t.Errorf("root is %+v", user)
		}
		return err
	})
	if err != nil {
		t.Errorf("root, who is to mend it: %v", err)
	}
	_, pem := newAuthority(t, pkix.Name{CommonName: "one"})
	if err := inTime(t, "certificates", func() error { return id.Apply(Update{CABundle: pem}, "") }); !fault.Is(err, fault.Internal) {
		t.Errorf("certificates: %v", err)
	}
}

func TestFilesAreBounded(t *testing.T) {
	path := t.TempDir() + "/file"
	put(t, path, "all")
	if data, err := readFile(path); err != nil || string(data) != "all" {
		t.Errorf("%q, %v", data, err)
	}
	if err := os.Truncate(path, maxFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := readFile(path); err == nil {
		t.Error("a file of more than maxFile was read")
	}
	if _, err := readFile("/dev/zero"); err == nil {
		t.Error("a device was read")
	}
	if err := overwrite(path, "new"); err != nil || content(t, path) != "new" {
		t.Errorf("written in place: %v", err)
	}
	pipeAt(t, path)
	if err := inTime(t, "a pipe", func() error { return overwrite(path, "new") }); err == nil {
		t.Error("a pipe was written to")
	}
}

// What others have put beside the certificates of ours stays theirs.
func TestCertificatesOfOthersAreLeft(t *testing.T) {
	tt := newTrustTest(t)
	_, one := newAuthority(t, pkix.Name{CommonName: "one"})
	tt.install(t, one)
	// A root that the system trusts, under a name like ours: it is not to leave the bundle.
	put(t, tt.store.Local+"/wrenn-mine.crt", tt.root)
	pipeAt(t, tt.store.Local+"/wrenn-pipe.crt")
	_, two := newAuthority(t, pkix.Name{CommonName: "two"})
	if err := inTime(t, "install", func() error { return tt.Apply(Update{CABundle: two}, "") }); err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, tt.store.Bundles[0]), tt.root+two; got != want {
		t.Errorf("the bundle is\n%s, want\n%s", got, want)
	}
	for _, name := range []string{"wrenn-mine.crt", "wrenn-pipe.crt"} {
		if _, err := os.Lstat(tt.store.Local + "/" + name); err != nil {
			t.Error(err)
		}
	}
}
