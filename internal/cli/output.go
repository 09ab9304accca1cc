package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// printJSON writes v as indented JSON and a newline.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // for people and jq, not for a web page
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printTable writes rows in columns under a line of headings.
func printTable(w io.Writer, headings []string, rows [][]string) error {
	const gap = 3 // spaces between columns
	tw := tabwriter.NewWriter(w, 0, 0, gap, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = printable(cell)
		}
		if _, err := fmt.Fprintln(tw, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// printable keeps what a guest named (a command, a tag) from steering the terminal or
// breaking the table.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r <= 0x9f {
			return '?'
		}
		return r
	}, s)
}

// age is how long ago t was, in its largest unit.
func age(now, t time.Time) string {
	const day = 24 * time.Hour
	switch d := max(now.Sub(t), 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < day:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/day)
	}
}

// mebibytes writes a size in MiB, in GiB when it is a whole number of them.
func mebibytes(mb int) string {
	const perGiB = 1024
	if mb >= perGiB && mb%perGiB == 0 {
		return fmt.Sprintf("%d GiB", mb/perGiB)
	}
	return fmt.Sprintf("%d MiB", mb)
}

// versionInfo is what `wrenn version --json` prints.
type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func versionOf(version string) versionInfo {
	return versionInfo{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
}

// byteSize writes a number of bytes in its largest unit.
func byteSize(n int64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	unit := ""
	for _, unit = range units {
		if v /= step; v < step {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
