package main

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

func TestRowComparesWithThePeer(t *testing.T) {
	for _, c := range []struct {
		figures []float64
		which   better
		says    string
	}{
		{[]float64{1, 2}, lower, "yes"}, {[]float64{2, 1}, lower, "no"},
		{[]float64{1, 2}, higher, "no"}, {[]float64{2, 1}, higher, "yes"},
		{[]float64{1, 1}, lower, "yes"}, {[]float64{1, 1}, higher, "yes"},
		{[]float64{1}, lower, ""},
	} {
		var r row
		r.beside("%.1f", c.figures, c.which)
		if r.peerSays != c.says {
			t.Errorf("%v, higher is better: %v: as good as the peer: %q, want %q", c.figures, bool(c.which), r.peerSays, c.says)
		}
	}
}

func TestMarkdownHasEveryRow(t *testing.T) {
	var table table
	table.add(row{what: "first", ours: "1", peer: compare("%.0f", 1, 4)})
	table.add(row{what: "second"})
	var out strings.Builder
	if err := table.markdown(&out, "A machine"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"A machine.\n", "| first | 1 |  | 4 (0.25) |", "| second |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestQuantiles(t *testing.T) {
	var all times
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Millisecond)
	}
	if got := all.millis(middle); got != 51 {
		t.Errorf("median %v", got)
	}
	if got := all.millis(tail); got != 100 {
		t.Errorf("p99 %v", got)
	}
	if got := (times{time.Second}).speed(5e6); got != 5 {
		t.Errorf("speed %v", got)
	}
}

func TestLeastByMost(t *testing.T) {
	share, total := leastByMost([]int64{10, 0, 5}, []int64{20, 40, 25})
	if share != 0.25 || total != 70 {
		t.Errorf("share %v of %v", share, total)
	}
	if share, _ := leastByMost([]int64{1, 1}, []int64{1, 2}); share != 0 {
		t.Errorf("one got nothing and the share is %v", share)
	}
}

// The payloads are looked for and not decoded: they must be what decoding would give.
func TestPayloads(t *testing.T) {
	for _, size := range []int{1, 2, 3, 1000, 32 << 10} {
		message := &processpb.StartResponse{Event: &processpb.ProcessEvent{Event: &processpb.ProcessEvent_Data{
			Data: &processpb.ProcessEvent_DataEvent{
				Output: &processpb.ProcessEvent_DataEvent_Stdout{Stdout: make([]byte, size)},
			},
		}}}
		for _, c := range codecs {
			frame, err := c.encode(message)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := c.payload(frame); err != nil || n != int64(size) {
				t.Errorf("%s: %d bytes of %d, %v", c.name, n, size, err)
			}
		}
	}
	end := &processpb.StartResponse{Event: &processpb.ProcessEvent{Event: &processpb.ProcessEvent_End{
		End: &processpb.ProcessEvent_EndEvent{Exited: true, Status: "exit status 0"},
	}}}
	for _, c := range codecs {
		for name, encode := range map[string]func(proto.Message) ([]byte, error){"its own": c.encode, "JSON with spaces": protojson.MarshalOptions{Multiline: true}.Marshal} {
			if name != "its own" && c.name != "JSON" {
				continue
			}
			frame, err := encode(end)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := c.payload(frame); err != nil || n != 0 {
				t.Errorf("%s, %s: the end has %d bytes of output, %v", c.name, name, n, err)
			}
		}
	}
}
