package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/report"
)

func TestThePlotIsAPicture(t *testing.T) {
	curves := []curve{
		{"pause", "a <small> guest", report.Times{30 * time.Millisecond, 20 * time.Millisecond}},
		{"resume", "one", report.Times{time.Second}},
		{"resume", "none", nil},
	}
	picture := plot(curves)
	paths := 0
	for dec := xml.NewDecoder(bytes.NewReader(picture)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "path" {
			paths++
		}
	}
	if paths != 2 || !bytes.Contains(picture, []byte("a &lt;small&gt; guest")) {
		t.Errorf("%d curves:\n%s", paths, picture)
	}
	if plot(nil) == nil {
		t.Error("nothing cannot be drawn")
	}
}

func TestNiceStep(t *testing.T) {
	for whole, want := range map[time.Duration]time.Duration{
		0: time.Millisecond, 7 * time.Millisecond: time.Millisecond, 8 * time.Millisecond: 2 * time.Millisecond,
		200 * time.Millisecond: 50 * time.Millisecond, 2 * time.Second: 500 * time.Millisecond,
	} {
		if got := niceStep(whole); got != want {
			t.Errorf("steps of %v for %v, want %v", got, whole, want)
		}
	}
}

func TestTheLongestGap(t *testing.T) {
	var gaps []gap
	for _, line := range []string{"1000000 9000", "2000000 3000", "3000000 5000"} {
		one, err := parseGap(line)
		if err != nil {
			t.Fatal(err)
		}
		gaps = append(gaps, one)
	}
	if got := longest(gaps, time.UnixMicro(1_500_000)); got != 5*time.Millisecond {
		t.Errorf("got %v", got)
	}
	if _, err := parseGap("up"); err == nil {
		t.Error("a line that tells no gap was taken for one")
	}
}

func TestThisProcessHasNoDescendants(t *testing.T) {
	if _, alive := parentOf(1); !alive {
		t.Error("the first process is not alive")
	}
	const none = 1 << 30
	if n, err := descendants(none); n != 0 || err != nil {
		t.Errorf("a process that does not exist has %d, %v", n, err)
	}
}
