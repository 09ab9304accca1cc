package identity

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	testPasswd = "# accounts\n" +
		"root:x:0:0:root:/root:/bin/bash\n" +
		"broken:x:notanumber:0::/:\n" +
		"short:x:1\n" +
		"dev:x:1000:1000:,,,:/home/dev:/bin/bash\n" +
		"twin:x:1000:1001::/home/twin:/bin/sh\n" +
		"homeless:x:1002:1002:::\n"
	testGroup = "root:x:0:\nsudo:x:27:dev,root\ndev:x:1000:dev\ndocker:x:998: dev ,ghost\nbad:x:y:dev\n"
)

func testUsers(t *testing.T) (*Users, string) {
	t.Helper()
	dir := t.TempDir()
	put(t, dir+"/passwd", testPasswd)
	put(t, dir+"/group", testGroup)
	return NewUsers(dir+"/passwd", dir+"/group"), dir
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestUsers(t *testing.T) {
	users, dir := testUsers(t)
	dev, err := users.Lookup("dev")
	if err != nil || dev.UID != 1000 || dev.GID != 1000 || dev.Home != "/home/dev" || !slices.Equal(dev.Groups, []uint32{27, 998}) {
		t.Errorf("dev: %+v, %v", dev, err)
	}
	if u, err := users.Lookup("homeless"); err != nil || u.Home != "/" {
		t.Errorf("homeless: %+v, %v", u, err)
	}
	for _, unknown := range []string{"broken", "short", "nobody", "", "dev:x"} {
		_, err := users.Lookup(unknown)
		if !fault.Is(err, fault.Unauthorized) || fault.MessageOf(err) != "invalid username: '"+unknown+"'" {
			t.Errorf("%q: %v", unknown, err)
		}
	}
	if got := users.UserName(1000) + users.UserName(77) + users.GroupName(27) + users.GroupName(78); got != "dev77sudo78" {
		t.Errorf("names %q", got)
	}
	put(t, dir+"/passwd", testPasswd+"late:x:2000:2000::/home/late:/bin/sh\n")
	if u, err := users.Lookup("late"); err != nil || u.UID != 2000 {
		t.Errorf("an account made later: %+v, %v", u, err)
	}
}

func TestEnvironment(t *testing.T) {
	users, _ := testUsers(t)
	id := New(users, System{}, slog.New(slog.DiscardHandler))
	if err := id.Apply(Update{
		Env:       map[string]string{"A": "default", "B": "default", "E2B_SANDBOX": "forged", "E2B_SANDBOX_ID": "forged"},
		SandboxID: "sb1", DefaultUser: "dev", Workdir: "/work",
	}, ""); err != nil {
		t.Fatal(err)
	}
	user, err := id.User("")
	if err != nil || user.Name != "dev" || id.Workdir() != "/work" {
		t.Fatalf("%+v, %v", user, err)
	}
	got := id.Environment("/bin", user, map[string]string{"B": "asked", "HOME": "/elsewhere"})
	want := []string{"A=default", "B=asked", "E2B_SANDBOX=true", "E2B_SANDBOX_ID=sb1", "HOME=/elsewhere", "LOGNAME=dev", "PATH=/bin", "USER=dev"}
	if !slices.Equal(got, want) {
		t.Errorf("environment\n%q, want\n%q", got, want)
	}
	// What one process asked for is not there for the next, and a new set replaces the old.
	if err := id.Apply(Update{Env: map[string]string{"C": "new"}}, ""); err != nil {
		t.Fatal(err)
	}
	got = id.Environment("/bin", user, nil)
	want = []string{"C=new", "E2B_SANDBOX=true", "E2B_SANDBOX_ID=sb1", "HOME=/home/dev", "LOGNAME=dev", "PATH=/bin", "USER=dev"}
	if !slices.Equal(got, want) {
		t.Errorf("environment\n%q, want\n%q", got, want)
	}
}

func TestToken(t *testing.T) {
	users, _ := testUsers(t)
	id := New(users, System{}, slog.New(slog.DiscardHandler))
	if !id.Authorized("") || !id.Authorized("anything") {
		t.Error("without a token everybody may come in")
	}
	for _, step := range []struct {
		update, presented string
		refused           bool
		now               string
	}{
		{"first", "", false, "first"},
		{"first", "", false, "first"},
		{"other", "", true, "first"},
		{"", "", true, "first"},
		{"second", "first", false, "second"},
		{"", "first", true, "second"},
		{"", "second", false, ""},
	} {
		err := id.Apply(Update{Token: step.update}, step.presented)
		if fault.Is(err, fault.Unauthorized) != step.refused {
			t.Fatalf("update %+v: %v", step, err)
		}
		if id.Authorized("wrong") != (step.now == "") || !id.Authorized(step.now) {
			t.Fatalf("after %+v the token is another one", step)
		}
	}
}

func TestOlderUpdatesAreIgnored(t *testing.T) {
	users, _ := testUsers(t)
	id := New(users, System{}, slog.New(slog.DiscardHandler))
	now := time.Unix(1_800_000_000, 0)
	for _, step := range []struct {
		at   time.Time
		dir  string
		want string
	}{{now, "/one", "/one"}, {now.Add(-time.Second), "/old", "/one"}, {now, "/same", "/same"}, {now.Add(time.Second), "/new", "/new"}} {
		if err := id.Apply(Update{Timestamp: step.at, Workdir: step.dir}, ""); err != nil || id.Workdir() != step.want {
			t.Errorf("%s: the directory is %s, %v", step.dir, id.Workdir(), err)
		}
	}
}

func TestWrongUpdatesChangeNothing(t *testing.T) {
	users, dir := testUsers(t)
	id := New(users, System{RunDir: dir + "/run"}, slog.New(slog.DiscardHandler))
	for says, up := range map[string]Update{
		"default user 'ghost'": {DefaultUser: "ghost"},
		"not absolute":         {Workdir: "work"},
		"NUL":                  {SandboxID: "a\x00b"},
		"environment variable": {Env: map[string]string{"A=B": "c"}},
		"nameserver":           {Nameservers: []string{"10.0.0.1", "dns.example"}},
		"hostname \"a b\"":     {Hostname: "a b"},
		"longer than":          {Hostname: strings.Repeat("h", 65)},
		"hyperloopIP \"events": {EventsIP: "events.example"},
		"hyperloopIP \"fe80":   {EventsIP: "fe80::1%eth0"},
	} {
		up.Token = "secret"
		err := id.Apply(up, "")
		if !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	if id.TokenRequired() {
		t.Error("a refused update set the token")
	}
	if _, err := os.Stat(dir + "/run"); err == nil {
		t.Error("a refused update wrote files")
	}
}

func TestSystemFiles(t *testing.T) {
	users, dir := testUsers(t)
	put(t, dir+"/hosts", "127.0.0.1 localhost\n10.1.1.1 friend # 127.0.1.1\n127.0.1.1\told-name\n")
	id := New(users, System{RunDir: dir + "/run", HostsPath: dir + "/hosts", ResolvConfPath: dir + "/resolv.conf"}, slog.New(slog.DiscardHandler))
	up := Update{SandboxID: "sb1", TemplateID: "base", Hostname: "box", Nameservers: []string{"10.0.0.1", "fd00::1"}}
	for range 2 { // the second time changes nothing
		if err := id.Apply(up, ""); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"hosts":           "::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1 localhost\n10.1.1.1 friend # 127.0.1.1\n127.0.1.1\tbox\n",
		"resolv.conf":     "nameserver 10.0.0.1\nnameserver fd00::1\n",
		"run/sandbox-id":  "sb1\n",
		"run/template-id": "base\n",
	} {
		if got := content(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
	left, err := filepath.Glob(dir + "/.wrenn*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestServiceOfEvents(t *testing.T) {
	users, dir := testUsers(t)
	put(t, dir+"/hosts", "10.9.9.9 friend events.e2b.local # comment\n10.8.8.8 events.e2b.local\n")
	id := New(users, System{HostsPath: dir + "/hosts"}, slog.New(slog.DiscardHandler))
	for _, step := range []struct{ address, hosts, url string }{
		{"10.0.0.7", "10.0.0.7\tevents.e2b.local\n", "http://10.0.0.7"},
		{"", "10.0.0.7\tevents.e2b.local\n127.0.1.1\tbox\n", "http://10.0.0.7"},
		{"fd00::7", "127.0.1.1\tbox\nfd00::7\tevents.e2b.local\n", "http://[fd00::7]"},
	} {
		hostname := ""
		if step.address == "" {
			hostname = "box"
		}
		if err := id.Apply(Update{EventsIP: step.address, Hostname: hostname}, ""); err != nil {
			t.Fatal(err)
		}
		want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.9.9.9\tfriend # comment\n" + step.hosts
		if got := content(t, dir+"/hosts"); sortedLines(got) != sortedLines(want) {
			t.Errorf("after %q the hosts file is\n%s, want\n%s", step.address, got, want)
		}
		if got := id.DefaultEnv()["E2B_EVENTS_ADDRESS"]; got != step.url {
			t.Errorf("after %q the service is at %s, want %s", step.address, got, step.url)
		}
	}
}

func sortedLines(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func FuzzAccounts(f *testing.F) {
	f.Add(testPasswd, testGroup)
	f.Add("root:x:0:0:::", "::::")
	f.Add("a:b:4294967296:1:x:y:z", "a:x:-1:a")
	f.Add("\xff:x:1:1::/:\n\n+::::::", strings.Repeat("g:x:1:u,", 100))
	f.Fuzz(func(t *testing.T, passwd, group string) {
		byName, names := parsePasswd([]byte(passwd))
		parseGroup([]byte(group), byName)
		for name, user := range byName {
			if name == "" || name != user.Name || user.Home == "" || slices.Contains(user.Groups, user.GID) {
				t.Fatalf("account %q is %+v", name, user)
			}
			if names[user.UID] == "" {
				t.Fatalf("user id %d of %q has no name", user.UID, name)
			}
		}
	})
}

func FuzzHostsFile(f *testing.F) {
	f.Add("127.0.0.1 localhost\n", "box", "10.0.0.7")
	f.Add("", "box", "")
	f.Add("127.0.1.1 a\r\n127.0.1.1 b", "box", "fd00::1")
	f.Add("10.0.0.1 events.e2b.local other#x", "", "10.0.0.1")
	f.Fuzz(func(t *testing.T, old, name, events string) {
		if checkSystem(Update{Hostname: name, EventsIP: events}) != nil || name == "" && events == "" {
			return
		}
		once := hostsFile(old, name, events)
		if twice := hostsFile(once, name, events); twice != once {
			t.Fatalf("%q becomes %q, and then %q", old, once, twice)
		}
		if name != "" && !strings.Contains(once, "\n127.0.1.1\t"+name+"\n") {
			t.Fatalf("%q does not name %q", once, name)
		}
		if events != "" && !strings.HasSuffix(once, "\n"+events+"\tevents.e2b.local\n") {
			t.Fatalf("%q does not name the service of events", once)
		}
	})
}
