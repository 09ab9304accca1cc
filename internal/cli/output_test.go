package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
)

func TestAge(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for ago, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59*time.Second + 999*time.Millisecond: "59s", time.Minute: "1m",
		59 * time.Minute: "59m", 90 * time.Minute: "1h", 23 * time.Hour: "23h", 49 * time.Hour: "2d",
	} {
		if got := age(now, now.Add(-ago)); got != want {
			t.Errorf("%v ago: %s, want %s", ago, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]string{
		"512": "512 MiB", "512M": "512 MiB", "512mb": "512 MiB", "2G": "2 GiB", "2GiB": "2 GiB", "1 g": "1 GiB", "1536": "1536 MiB",
		"": "", "0": "", "-1": "", "1.5G": "", "2T": "", "G": "", "99999999999999999999": "", "16777217": "", "20000G": "",
	} {
		var f sizeFlag
		err := f.Set(text)
		if got := mebibytes(int(f)); err == nil && got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %s, %v; want %q", text, got, err, want)
		}
	}
}

func TestSeconds(t *testing.T) {
	for text, want := range map[string]int{
		"90": 90, "90s": 90, "15m": 900, "2h": 7200, "0": 0,
		"": -1, "-1": -1, "-1s": -1, "1.5s": -1, "1d": -1, "99999999999": -1,
	} {
		var f secondsFlag
		if err := f.Set(text); (err != nil) != (want == -1) || err == nil && int(f) != want {
			t.Errorf("%q: %d, %v; want %d", text, f, err, want)
		}
	}
}

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"a.txt": {"", "a.txt"}, "-": {"", "-"}, "./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, ":x": {"", ":x"}, "a.b:c": {"", "a.b:c"},
		"sb1:/x": {"sb1", "/x"}, "sb1:x:y": {"sb1", "x:y"}, "sb1:": {"sb1", "."},
	} {
		if got := parsePlace(text); got != want {
			t.Errorf("%q is %+v, want %+v", text, got, want)
		}
	}
}

// What a guest named must not steer the terminal.
func TestTablesAreDefused(t *testing.T) {
	var out bytes.Buffer
	if err := printTable(&out, []string{"A", "B"}, [][]string{{"x\x1b[2J\u009by", "1\t2\n3"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "A         B\nx?[2J?y   1?2?3\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestEndsBecomeExitCodes(t *testing.T) {
	for _, test := range []struct {
		how  ended
		want int
	}{
		{ended{}, 0}, {ended{ExitCode: 1}, 1}, {ended{ExitCode: 255}, 255},
		{ended{ExitCode: -1, Signal: "SIGKILL"}, 137}, {ended{ExitCode: -1, Signal: "SIGSEGV"}, 139}, {ended{ExitCode: -1, Signal: "SIGWHAT"}, 137},
		{ended{ExitCode: -1, Signal: "SIGKILL", TimedOut: true}, 124},
	} {
		err := test.how.status(clientMessage{Cmd: "x"})
		got := 0
		if err != nil {
			got = codeOf(err)
		}
		if got != test.want {
			t.Errorf("%+v: %d, want %d", test.how, got, test.want)
		}
	}
}

func TestLocalModeIsSafe(t *testing.T) {
	for mode, want := range map[int64]string{0o644: "-rw-r--r--", 0o4755: "-rwxr-xr-x", 0: "-rw-------", 0o2070: "-rw-rwx---", -1: "-rwxrwxrwx"} {
		if got := localMode(api.FileEntry{Type: api.File, Mode: mode}).String(); got != want {
			t.Errorf("%o becomes %s, want %s", mode, got, want)
		}
	}
}

// Nothing of a display may reach a pipe or a file.
func TestNoDisplayOffTerminals(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, w := range []io.Writer{f, &bytes.Buffer{}} {
		spin(w, "working")()
		if m := newMeter(w, "x", 10); m != nil {
			t.Errorf("a meter on %T", w)
		}
	}
}

// On a terminal, and only after a while, a spinner turns, and nothing of it stays.
func TestSpinnerCleansUp(t *testing.T) {
	terminal, person := openTerminal(t)
	stop := spin(terminal, "creating")
	seen := readUntil(t, person, "creating…")
	if !strings.HasPrefix(seen, clearLine) {
		t.Errorf("it began with %q", seen)
	}
	stop()
	stop()
	fmt.Fprint(terminal, "END")
	if rest := readUntil(t, person, "END"); !strings.HasSuffix(rest, clearLine+"END") {
		t.Errorf("left behind: %q", rest)
	}
	for _, colour := range []string{"\x1b[3", "\x1b[1m", "\x1b[9"} {
		if strings.Contains(seen, colour) {
			t.Errorf("it is coloured: %q", seen)
		}
	}
}

func TestMeterShowsAndClears(t *testing.T) {
	terminal, person := openTerminal(t)
	m := newMeter(terminal, "file.bin", 1000)
	m.begun = m.begun.Add(-2 * patience)
	if _, err := io.Copy(io.Discard, m.reader(strings.NewReader(strings.Repeat("x", 500)))); err != nil {
		t.Fatal(err)
	}
	readUntil(t, person, "file.bin")
	m.stop()
	fmt.Fprint(terminal, "END")
	readUntil(t, person, "END")
}
