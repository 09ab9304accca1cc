package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// row is one figure and what it is measured against.
type row struct {
	what   string
	ours   string
	raw    string
	ratio  string
	target string // empty: none
	met    bool
}

// table collects the rows as they are measured.
type table struct{ rows []row }

func (t *table) add(r row) { t.rows = append(t.rows, r) }

func (t *table) print(w io.Writer) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "\twrenn\traw peer\tratio\ttarget\t")
	for _, r := range t.rows {
		verdict := ""
		if r.target != "" {
			verdict = "missed"
			if r.met {
				verdict = "met"
			}
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%s\n", r.what, r.ours, r.raw, r.ratio, r.target, verdict)
	}
	tab.Flush()
	fmt.Fprint(w, `
The raw peer of a start is runsc create + start of the same image with the same limits, in a network namespace
that stands ready, until its first process has written a byte; that of a command is runsc exec; that of a
transfer is a copy over loopback HTTP into, or out of, a file.
`)
}

// times are measurements of one thing.
type times []time.Duration

// quantile returns the value that a share q of the measurements does not exceed.
func (t times) quantile(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Clone(t)
	slices.Sort(sorted)
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func (t times) median() time.Duration { return t.quantile(0.5) }

// ms writes a duration as people compare them here.
func ms(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

func ratio(ours, raw float64) string {
	if raw == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", ours/raw)
}
