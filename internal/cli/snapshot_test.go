package cli

import (
	"slices"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
)

func TestPrunable(t *testing.T) {
	now := time.Now()
	list := []api.Template{{Name: "old", CreatedAt: now.Add(-3 * time.Hour)}, {Name: "new", CreatedAt: now}, {Name: "mid", CreatedAt: now.Add(-2 * time.Hour)}}
	hour, day := now.Add(-time.Hour), now.Add(-24*time.Hour)
	for name, c := range map[string]struct {
		byNumber bool
		keep     int
		byAge    bool
		before   time.Time
		want     []string
	}{
		"all but one":     {true, 1, false, now, []string{"mid", "old"}},
		"all":             {true, 0, false, now, []string{"new", "mid", "old"}},
		"more than there": {true, 9, false, now, []string{}},
		"too old":         {false, 0, true, hour, []string{"mid", "old"}},
		"none too old":    {false, 0, true, day, []string{}},
		"both":            {true, 2, true, hour, []string{"old"}},
	} {
		got := []string{}
		for _, t := range prunable(list, c.byNumber, c.keep, c.byAge, c.before) {
			got = append(got, t.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestAgeFlag(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"7d": 7 * 24 * time.Hour, "90m": 90 * time.Minute, "0d": 0, "1h30m": 90 * time.Minute,
		"d": -1, "7": -1, "-1h": -1, "-1d": -1, "7days": -1, "1.5d": -1, "99999999d": -1, "": -1,
	} {
		var f AgeFlag
		err := f.Set(text)
		if want < 0 && err == nil || want >= 0 && (err != nil || time.Duration(f) != want) {
			t.Errorf("%q: %v, %v", text, time.Duration(f), err)
		}
	}
}

func TestSparkline(t *testing.T) {
	for want, values := range map[string][]float64{
		"▁":     {0},
		"▁▁▁":   {0, 0, 0},
		"▁▄█":   {0, 50, 100},
		"█▁▁▁▁": {9, 0, 0, 0, 0, 0, 0, 0, 0, 0}, // a peak among values that share a column
	} {
		if got := sparkline(values, 5); got != want {
			t.Errorf("%v: %s, want %s", values, got, want)
		}
	}
}

func TestByteSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 19: "1.5 MiB", 5 << 30: "5.0 GiB", 5 << 50: "5120.0 TiB"} {
		if got := byteSize(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}
