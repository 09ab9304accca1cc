// Package report collects the figures of a benchmark and prints them beside what they are
// measured against. It must not know what is measured.
package report

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Tails are the quantiles that are published beside the median.
var Tails = []float64{0.95, 0.99}

// Row is one figure and what it is measured against.
type Row struct {
	What   string
	Ours   string
	Raw    string // the bare thing beside; empty: there is none
	Ratio  string
	Target string // empty: none
	Met    bool
}

// Table collects the rows as they are measured.
type Table struct{ rows []Row }

// Add appends a row.
func (t *Table) Add(r Row) { t.rows = append(t.rows, r) }

// Print writes the table, and the legend below it.
func (t *Table) Print(w io.Writer, legend string) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "\twrenn\traw peer\tratio\ttarget\t")
	for _, r := range t.rows {
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%s\n", r.What, r.Ours, r.Raw, r.Ratio, r.Target, r.verdict())
	}
	tab.Flush()
	fmt.Fprint(w, "\n"+legend)
}

// Markdown writes the rows as a document has them.
func (t *Table) Markdown(w io.Writer) {
	fmt.Fprintln(w, "| | wrenn | raw peer | ratio | target | |\n| --- | --- | --- | --- | --- | --- |")
	for _, r := range t.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", r.What, r.Ours, r.Raw, r.Ratio, r.Target, r.verdict())
	}
}

// verdict says whether a target was met; it is empty where there is none.
func (r Row) verdict() string {
	switch {
	case r.Target == "":
		return ""
	case r.Met:
		return "met"
	}
	return "missed"
}

// Machine describes what the figures are of: the kernel, the processors, the day.
func Machine() string {
	release := "unknown kernel"
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		release = "Linux " + unix.ByteSliceToString(name.Release[:])
	}
	return fmt.Sprintf("%s, %d CPUs, %s", release, runtime.NumCPU(), time.Now().Format(time.DateOnly))
}

// Times are measurements of one thing.
type Times []time.Duration

// Quantile returns the value that a share q of the measurements does not exceed.
func (t Times) Quantile(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Clone(t)
	slices.Sort(sorted)
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// Median is the one in the middle.
func (t Times) Median() time.Duration { return t.Quantile(0.5) }

// MS writes a duration as people compare them here.
func MS(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// Ratio writes how ours compares to the bare thing.
func Ratio(ours, raw float64) string {
	if raw == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", ours/raw)
}
