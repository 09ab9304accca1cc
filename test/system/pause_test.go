package system_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/wrenn-sandbox/wrenn/internal/testenv"
)

// statusPaused is what WebSockets end with when their sandbox is paused.
const statusPaused websocket.StatusCode = 4001

// counts starts a process in the background that counts in its memory, and shows where it
// is in a file, which it writes ten times a second.
func (s *sandbox) counts(t testing.TB) {
	t.Helper()
	const script = `import time, os
n = 0
while True:
    n += 1
    with open("/tmp/count.new", "w") as f: f.write(str(n))
    os.rename("/tmp/count.new", "/tmp/count")
    time.sleep(0.1)`
	a := s.p.call(t, http.MethodPost, s.path("/exec"), object{"cmd": "python3", "args": []string{"-c", script}, "background": true, "tag": "counter"})
	if a.status != http.StatusAccepted {
		t.Fatalf("exec answered %d: %s", a.status, a.body)
	}
	eventually(t, settleLimit, func() error {
		if s.sh(t, "cat /tmp/count 2>/dev/null || true") == "" {
			return errStill("it does not count yet")
		}
		return nil
	})
}

func (s *sandbox) count(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(s.sh(t, "cat /tmp/count"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// goesOn waits until the counter is beyond n, where it was, and fails when it began anew.
func (s *sandbox) goesOn(t testing.TB, n int) {
	t.Helper()
	if now := s.count(t); now < n {
		t.Errorf("the counter was at %d and is at %d", n, now)
	}
	eventually(t, settleLimit, func() error {
		if now := s.count(t); now <= n {
			return fmt.Errorf("the counter stands at %d", now)
		}
		return nil
	})
}

// do posts to one of the sandbox's routes and wants a status.
func (s *sandbox) do(t testing.TB, path string, body any, status int) answer {
	t.Helper()
	a := s.p.call(t, http.MethodPost, s.path(path), body)
	if a.status != status {
		t.Fatalf("%s answered %d: %s", path, a.status, a.body)
	}
	return a
}

func (s *sandbox) refuses(t testing.TB, path string, body any, says string) {
	t.Helper()
	a := s.p.call(t, http.MethodPost, s.path(path), body)
	if code, message := a.fault(t); a.status != http.StatusConflict || code != "invalid_state" || !strings.Contains(message, says) {
		t.Errorf("%s answered %d: %s", path, a.status, a.body)
	}
}

// requireOnDisk fails when something is left on the machine of sandboxes that are paused but
// their records, and the slots that are parked for them.
func requireOnDisk(t *testing.T, o *observer) {
	t.Helper()
	requireClean(t, o, []kind{processes, namespaces, links, mounts, cgroups, bundles, overlays})
	for _, e := range o.find(elements) {
		if !strings.HasPrefix(e, "parked ") {
			t.Errorf("left of a paused sandbox: %s", e)
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	p := ownProgram(t, t.TempDir())
	s := newSandbox(t, p, object{"timeout_sec": 3600, "metadata": object{"a": "b"}})
	s.counts(t)
	s.sh(t, "head -c 3000000 /dev/urandom > blob; sha256sum blob > sum")
	s.do(t, "/exec", object{"cmd": "python3", "args": []string{"-m", "http.server", "8000"}, "background": true}, http.StatusAccepted)
	for range 3 {
		terminal, _ := s.open(t, "/pty", object{"type": "start"})
		follow, _ := s.open(t, "/exec/stream", object{"type": "start", "cmd": "sleep", "args": []string{"1000"}})
		n := s.count(t)
		info := s.do(t, "/pause", nil, http.StatusOK).object(t)
		if info["status"] != "paused" || info["paused_at"] == nil || info["snapshot_bytes"] == nil || info["ends_at"] != nil {
			t.Errorf("paused: %v", info)
		}
		for what, c := range map[string]*stream{"a terminal": terminal, "a command": follow} {
			last, status := c.ends()
			if last.Type != "error" || !last.Fatal || last.Code != "invalid_state" || !strings.Contains(last.Data, "paused; resume it") || status != statusPaused {
				t.Errorf("%s ended with %+v, %v", what, last, status)
			}
		}
		requireOnDisk(t, p.seen)
		s.refuses(t, "/pause", nil, "is paused")
		s.refuses(t, "/exec", object{"cmd": "true"}, "resume it first")
		s.refuses(t, "/ping", nil, "resume it first")
		s.refuses(t, "/fork", nil, "resume it first")
		info = s.do(t, "/resume", nil, http.StatusOK).object(t)
		if info["status"] != "running" || info["ends_at"] == nil {
			t.Errorf("resumed: %v", info)
		}
		p.seen.look()
		s.refuses(t, "/resume", nil, "is running")
		s.goesOn(t, n)
		s.sh(t, "sha256sum -c sum && curl -sf --retry 3 --retry-connrefused http://127.0.0.1:8000/ >/dev/null")
	}
	// The commands that were followed are still there, and can be followed again.
	var list struct{ Processes []struct{ Cmd string } }
	if err := json.Unmarshal(p.call(t, http.MethodGet, s.path("/processes"), nil).body, &list); err != nil {
		t.Fatal(err)
	}
	sleeping := 0
	for _, p := range list.Processes {
		if p.Cmd == "sleep" {
			sleeping++
		}
	}
	if sleeping != 3 {
		t.Errorf("of 3 commands %d are left", sleeping)
	}
}

// hasTheTime checks that the clock of a sandbox is that of the host.
func (s *sandbox) hasTheTime(t testing.TB) {
	t.Helper()
	const off = 100 * time.Millisecond
	before := time.Now()
	text := s.sh(t, "date +%s%N")
	after := time.Now()
	ns, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if now := time.Unix(0, ns); now.Before(before.Add(-off)) || now.After(after.Add(off)) {
		t.Errorf("its clock says %v between %v and %v", now, before, after)
	}
}

// movable makes a directory for a program whose images move along with it.
func movable(t *testing.T) (dir string, flags []string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "here")
	images := filepath.Join(dir, "data", "images")
	if err := os.MkdirAll(images, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, file := range globs(filepath.Join(testenv.Images(t), "*")) {
		if err := os.Symlink(file, filepath.Join(images, filepath.Base(file))); err != nil {
			t.Fatal(err)
		}
	}
	return dir, []string{"--image-dir", images}
}

// What is paused goes on after a stop, after a crash, and wherever its data directory has been
// moved to; so does what ran meanwhile.
func TestPausedSurvivesRestarts(t *testing.T) {
	dir, flags := movable(t)
	p := ownProgram(t, dir, flags...)
	s := newSandbox(t, p, nil)
	s.counts(t)
	n := s.count(t)
	s.do(t, "/pause", nil, http.StatusOK)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	second := ownProgram(t, dir, flags...)
	s.p = second
	if status, reason := s.status(t); status != "paused" {
		t.Errorf("after a stop it is %s (%s)", status, reason)
	}
	s.do(t, "/resume", nil, http.StatusOK)
	s.hasTheTime(t)
	s.goesOn(t, n)
	s.do(t, "/pause", nil, http.StatusOK)
	ran := newSandbox(t, second, nil)
	second.kill()
	if err := os.Rename(dir, filepath.Join(filepath.Dir(dir), "there")); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(filepath.Dir(dir), "there")
	third := ownProgram(t, dir, "--image-dir", filepath.Join(dir, "data", "images"))
	s.p, ran.p = third, third
	s.do(t, "/resume", nil, http.StatusOK)
	s.hasTheTime(t)
	s.goesOn(t, n)
	ran.do(t, "/pause", nil, http.StatusOK)
	ran.needsItsDaemon(t)
	ran.do(t, "/resume", nil, http.StatusOK)
	if err := ran.answers(t.Context(), settleLimit); err != nil {
		t.Error(err)
	}
	for _, sb := range []*sandbox{s, ran} {
		if a := third.call(t, http.MethodDelete, sb.path(""), nil); a.status != http.StatusNoContent {
			t.Errorf("delete answered %d: %s", a.status, a.body)
		}
	}
	requireClean(t, third.seen, ofSandboxes)
	if left := globs(third.dataDir + "/snapshots/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// needsItsDaemon looks what a resume of a paused sandbox says whose guest daemon somebody has
// taken away, and puts that back.
func (s *sandbox) needsItsDaemon(t *testing.T) {
	t.Helper()
	daemons := globs(s.p.dataDir + "/guest/*/envd")
	if len(daemons) != 1 {
		t.Fatalf("guest daemons: %v", daemons)
	}
	if err := os.Rename(daemons[0], daemons[0]+".away"); err != nil {
		t.Fatal(err)
	}
	a := s.p.call(t, http.MethodPost, s.path("/resume"), nil)
	if _, message := a.fault(t); a.status != http.StatusConflict || !strings.Contains(message, "put it back there as guest/") {
		t.Errorf("without its guest daemon, resume answered %d: %s", a.status, a.body)
	}
	if err := os.Rename(daemons[0]+".away", daemons[0]); err != nil {
		t.Fatal(err)
	}
}

// anotherBuild has all programs from here on be of another build than those before.
func anotherBuild(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"wrenn", "envd", "runsc"} {
		content, err := os.ReadFile(testenv.Bin(t, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), append(content, 0), 0o755) //nolint:gosec // they are to be run
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("WRENN_TEST_BIN", dir)
}

// Sandboxes live on when the program stops, is killed, or is replaced, and their streams can
// be taken up again.
func TestSandboxesLiveOn(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, p *program) error{
		"kill -9": func(_ *testing.T, p *program) error { p.kill(); return nil },
		"stop":    func(_ *testing.T, p *program) error { return p.stop() },
		"upgrade": func(t *testing.T, p *program) error { anotherBuild(t); return p.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := ownProgram(t, dir, "--on-stop", "keep")
			s := newSandbox(t, p, nil)
			s.counts(t)
			s.do(t, "/exec", object{"cmd": "sh", "args": []string{"-c", "echo before; read x </dev/tty || sleep 1000"}, "background": true, "tag": "t"}, http.StatusAccepted)
			terminal, _ := s.open(t, "/pty", object{"type": "start", "tag": "work"})
			terminal.types("X=kept\r")
			n := s.count(t)
			if err := end(t, p); err != nil {
				t.Fatal(err)
			}
			again := ownProgram(t, dir, "--on-stop", "keep")
			s.p = again
			if status, reason := s.status(t); status != "running" {
				t.Errorf("it is %s (%s)", status, reason)
			}
			if now := s.count(t); now <= n {
				t.Errorf("the counter was at %d and is at %d: it did not run meanwhile", n, now)
			}
			follow := s.dial(t, "/processes/t/stream?replay=true")
			if m := follow.next(); m.Type != "start" {
				t.Errorf("%+v", m)
			}
			follow.sees("before")
			back, _ := s.open(t, "/pty", object{"type": "connect", "tag": "work"})
			back.types("echo $X-$((40+2))\r")
			back.sees("kept-42")
			// What is written down now is restored by the build that it began with.
			n = s.count(t)
			s.do(t, "/pause", nil, http.StatusOK)
			s.do(t, "/resume", nil, http.StatusOK)
			s.goesOn(t, n)
			if a := again.call(t, http.MethodDelete, s.path(""), nil); a.status != http.StatusNoContent {
				t.Errorf("delete answered %d: %s", a.status, a.body)
			}
			requireClean(t, again.seen, ofSandboxes)
			if err := again.stop(); err != nil {
				t.Error(err)
			}
			requireClean(t, again.seen, everything)
		})
	}
}

// Stopped with --on-stop pause, the program has all its sandboxes paused when it has ended.
func TestStopThatPauses(t *testing.T) {
	dir := t.TempDir()
	p := ownProgram(t, dir, "--on-stop", "pause")
	s := newSandbox(t, p, nil)
	s.counts(t)
	n := s.count(t)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	requireOnDisk(t, p.seen)
	again := ownProgram(t, dir)
	s.p = again
	if status, reason := s.status(t); status != "paused" {
		t.Errorf("it is %s (%s)", status, reason)
	}
	s.do(t, "/resume", nil, http.StatusOK)
	s.goesOn(t, n)
}

// when reads a time of a sandbox.
func when(t testing.TB, info object, field string) time.Time {
	t.Helper()
	text, _ := info[field].(string)
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatalf("%s of %v: %v", field, info, err)
	}
	return at
}

// A pause by a clock is safe within a second of its time.
func TestAutoPause(t *testing.T) {
	p := theProgram(t)
	const onTime = time.Second
	for name, c := range map[string]struct {
		fields object
		begin  func(s *sandbox)
		due    func(s *sandbox, info object) time.Time
		says   string
	}{
		"idle, with an open terminal and a process in the background": {
			object{"timeout_sec": 2}, func(s *sandbox) {
				s.counts(t)
				terminal, _ := s.open(t, "/pty", object{"type": "start"})
				terminal.types("echo rea''dy\r")
				terminal.sees("ready")
			}, func(_ *sandbox, info object) time.Time { return when(t, info, "last_active_at").Add(2 * time.Second) }, "idle",
		},
		"idle, after a command whose client has gone": {
			object{"timeout_sec": 2}, func(s *sandbox) {
				c, _ := s.open(t, "/exec/stream", object{"type": "start", "cmd": "sleep", "args": []string{"4"}})
				c.conn.CloseNow()
			}, func(s *sandbox, info object) time.Time {
				// The command runs from the creation on, or a little later.
				return when(t, info, "started_at").Add(6 * time.Second)
			}, "idle",
		},
		"a deadline, in the middle of a command": {
			object{"deadline_sec": 2}, func(s *sandbox) {
				s.open(t, "/exec/stream", object{"type": "start", "cmd": "sleep", "args": []string{"1000"}})
			}, func(_ *sandbox, info object) time.Time { return when(t, info, "created_at").Add(2 * time.Second) }, "deadline",
		},
	} {
		s := newSandbox(t, p, c.fields)
		c.begin(s)
		var info object
		eventually(t, settleLimit, func() error {
			info = p.call(t, http.MethodGet, s.path(""), nil).object(t)
			if info["status"] != "paused" {
				return fmt.Errorf("it is %v", info["status"])
			}
			return nil
		})
		due, at := c.due(s, info), when(t, info, "paused_at")
		t.Logf("%s: paused %v after its time", name, at.Sub(due))
		if late := at.Sub(due); late < -50*time.Millisecond || late > onTime {
			t.Errorf("%s: %v after its time", name, late)
		}
		if reason, _ := info["reason"].(string); !strings.Contains(reason, c.says) {
			t.Errorf("%s: the reason is %q", name, reason)
		}
		// What is resumed does not pause at once.
		info = s.do(t, "/resume", nil, http.StatusOK).object(t)
		if left := time.Until(when(t, info, "ends_at")); left < time.Second {
			t.Errorf("%s: after the resume %v are left", name, left)
		}
	}
}

func TestTimeout(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	if info := s.do(t, "/timeout", object{"deadline_sec": 1, "on_timeout": "kill"}, http.StatusOK).object(t); info["ends_at"] == nil {
		t.Errorf("%v", info)
	}
	eventually(t, settleLimit, func() error {
		if status, reason := s.status(t); status != "stopped" || !strings.Contains(reason, "deadline") {
			return fmt.Errorf("it is %s (%s)", status, reason)
		}
		return nil
	})
	s.refuses(t, "/timeout", object{"deadline_sec": 5}, "has ended")
	s.refuses(t, "/resume", nil, "only a paused sandbox")
}

func TestMetrics(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	s.sh(t, "dd if=/dev/zero of=file bs=1M count=20 2>/dev/null; timeout 2 sh -c 'while :; do :; done' || true")
	type points []struct {
		TimestampUnix int64   `json:"timestamp_unix"`
		CPUPct        float64 `json:"cpu_pct"`
		MemBytes      int64   `json:"mem_bytes"`
		DiskBytes     int64   `json:"disk_bytes"`
	}
	read := func() points {
		var got struct{ Points points }
		a := p.call(t, http.MethodGet, s.path("/metrics?range=5m"), nil)
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		return got.Points
	}
	var before points
	eventually(t, settleLimit, func() error {
		before = read()
		for _, pt := range before {
			if pt.CPUPct > 50 && pt.MemBytes > mib && pt.DiskBytes > 20*mib {
				return nil
			}
		}
		return fmt.Errorf("%+v", before)
	})
	s.do(t, "/pause", nil, http.StatusOK)
	if paused := read(); len(paused) < len(before) {
		t.Errorf("%d points before the pause, %d in it", len(before), len(paused))
	}
	s.do(t, "/resume", nil, http.StatusOK)
	eventually(t, settleLimit, func() error {
		if after := read(); len(after) <= len(before) {
			return fmt.Errorf("%d points before the pause, %d after it", len(before), len(after))
		}
		return nil
	})
}

// holdsTun holds something that gVisor cannot write down, and says when it does.
const holdsTun = `python3 -c '
import fcntl, os, struct, time
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack("16sH", b"tun0", 0x1001))
open("/tmp/held", "w")
time.sleep(3600)
' & until test -e /tmp/held; do sleep 0.1; done`

// What cannot be paused when its deadline passes runs on and says why; once it can, it is.
func TestWhatCannotBePausedSaysSo(t *testing.T) {
	p := theProgram(t)
	s := newSandbox(t, p, nil)
	s.exec(t, object{"cmd": "sh", "args": []string{"-c", holdsTun + " </dev/null >/dev/null 2>&1"}, "user": "root"})
	info := s.do(t, "/timeout", object{"deadline_sec": 1}, http.StatusOK).object(t)
	eventually(t, settleLimit, func() error {
		info = p.call(t, http.MethodGet, s.path(""), nil).object(t)
		if reason, _ := info["reason"].(string); info["status"] != "running" || !strings.Contains(reason, "/dev/net/tun") || !strings.Contains(reason, "it is ended at") {
			return fmt.Errorf("it is %v: %q", info["status"], reason)
		}
		return nil
	})
	s.exec(t, object{"cmd": "pkill", "args": []string{"python3"}, "user": "root"})
	s.do(t, "/timeout", object{"deadline_sec": 1}, http.StatusOK)
	eventually(t, settleLimit, func() error {
		if info = p.call(t, http.MethodGet, s.path(""), nil).object(t); info["status"] != "paused" {
			return fmt.Errorf("it is %v: %v", info["status"], info["reason"])
		}
		return nil
	})
}
