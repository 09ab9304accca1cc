package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one figure, and what it is compared with.
type row struct {
	what     string
	ours     string
	raw      string // the bare thing, and how ours compares to it; empty: there is none
	peer     string // E2B's envd
	target   string // empty: none
	verdict  string
	peerSays string // whether ours is at least as good as the peer
}

// better says which of two figures is the better one.
type better bool

const (
	lower  better = false
	higher better = true
)

// table collects the rows as they are measured.
type table struct{ rows []row }

func (t *table) add(r row) { t.rows = append(t.rows, r) }

var columns = []string{"", "wrenn", "raw peer (ratio)", "E2B's envd (ratio)", "target", "", "as good as envd"}

func (r row) cells() []string {
	return []string{r.what, r.ours, r.raw, r.peer, r.target, r.verdict, r.peerSays}
}

func (t *table) print(w io.Writer) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, strings.Join(columns, "\t"))
	for _, r := range t.rows {
		fmt.Fprintln(tab, strings.Join(r.cells(), "\t"))
	}
	tab.Flush()
	fmt.Fprintf(w, "\n%s", legend)
}

// legend says what is not in the table.
const legend = `A ratio is wrenn's figure by the peer's. Times: less is better; speeds and shares: more is better.
Raw peers: fork, exec and wait in Go; sshd over loopback; a pipe; a copy over plain HTTP.
`

// markdown writes the table as a document has it.
func (t *table) markdown(w io.Writer, heading string) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s.\n\n| %s |\n|%s\n", heading, strings.Join(columns, " | "), strings.Repeat(" --- |", len(columns)))
	for _, r := range t.rows {
		fmt.Fprintf(&text, "| %s |\n", strings.Join(r.cells(), " | "))
	}
	fmt.Fprintf(&text, "\n%s", legend)
	_, err := io.WriteString(w, text.String())
	return err
}

// compare writes a peer's figure with the ratio of ours to it.
func compare(format string, ours, theirs float64) string {
	if theirs == 0 {
		return fmt.Sprintf(format, theirs)
	}
	return fmt.Sprintf(format+" (%.2f)", theirs, ours/theirs)
}

// verdict says whether a target was met.
func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

// beside fills in the column of the peer: figures has ours and, when there is one, its.
func (r *row) beside(format string, figures []float64, which better) {
	r.ours = fmt.Sprintf(format, figures[0])
	if len(figures) == 1 {
		r.peer = "no peer given"
		return
	}
	ours, theirs := figures[0], figures[1]
	r.peer = compare(format, ours, theirs)
	r.peerSays = "no"
	if ours == theirs || (ours > theirs) == bool(which) {
		r.peerSays = "yes"
	}
}

// addSmaller adds a row in which less is better; a target of 0 is none.
func (b *bench) addSmaller(what, format string, figures []float64, target float64) {
	r := row{what: what}
	r.beside(format, figures, lower)
	if target > 0 {
		r.target, r.verdict = fmt.Sprintf("≤ %g", target), verdict(figures[0] <= target)
	}
	b.table.add(r)
}

// turns are the numbers below n in the order of a round. Each begins with another one: who
// comes after a slow one may find the machine still busy with it.
func turns(round, n int) []int {
	order := make([]int, 0, n)
	for i := range n {
		order = append(order, (round+i)%n)
	}
	return order
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

// middle and tail are the quantiles that the table has.
const (
	middle = 0.5
	tail   = 0.99
)

// millis is a quantile in milliseconds.
func (t times) millis(q float64) float64 { return float64(t.quantile(q)) / float64(time.Millisecond) }

// speed is how many MB a second the median of moving so many bytes is.
func (t times) speed(bytes int64) float64 { return float64(bytes) / 1e6 / t.quantile(middle).Seconds() }

// millisOf are the quantiles of several daemons.
func millisOf(all []times, q float64) []float64 {
	var figures []float64
	for _, t := range all {
		figures = append(figures, t.millis(q))
	}
	return figures
}
