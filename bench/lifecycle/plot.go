package main

import (
	"bytes"
	"fmt"
	"html"
	"slices"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/report"
)

// curve is the distribution of the times of one thing, to be drawn into the panel of its
// kind.
type curve struct {
	panel string
	name  string
	times report.Times
}

// The measures of a panel, in pixels.
const (
	panelWidth, panelHeight        = 640, 260
	marginLeft, marginTop          = 56, 36
	marginRight, marginBottom      = 190, 44
	plotWidth, plotHeight          = panelWidth - marginLeft - marginRight, panelHeight - marginTop - marginBottom
	legendLine, legendGap, tickGap = 18, 12, 5
)

var colours = []string{"#1f77b4", "#aec7e8", "#d62728", "#ff9896", "#2ca02c", "#9467bd"}

// plot draws, for pauses and for resumes, the share of measurements that took at most so
// long.
func plot(curves []curve) []byte {
	panels := []string{"pause", "resume"}
	var out bytes.Buffer
	height := panelHeight * len(panels)
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		panelWidth, height, panelWidth, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="white"/>`+"\n", panelWidth, height)
	for i, name := range panels {
		var mine []curve
		for _, c := range curves {
			if c.panel == name && len(c.times) > 0 {
				mine = append(mine, c)
			}
		}
		fmt.Fprintf(&out, `<g transform="translate(0 %d)">`+"\n", i*panelHeight)
		drawPanel(&out, name, mine)
		fmt.Fprintln(&out, "</g>")
	}
	fmt.Fprintln(&out, "</svg>")
	return out.Bytes()
}

func drawPanel(out *bytes.Buffer, name string, curves []curve) {
	var longest time.Duration
	for _, c := range curves {
		longest = max(longest, slices.Max(c.times))
	}
	step := niceStep(longest)
	end := longest.Truncate(step) + step
	x := func(d time.Duration) float64 { return marginLeft + plotWidth*float64(d)/float64(end) }
	y := func(share float64) float64 { return marginTop + plotHeight*(1-share) }

	fmt.Fprintf(out, `<text x="%d" y="20" font-weight="bold">%s: share of measurements within a time, ms</text>`+"\n", marginLeft, html.EscapeString(name))
	for d := time.Duration(0); d <= end; d += step {
		fmt.Fprintf(out, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`, x(d), marginTop, x(d), marginTop+plotHeight)
		fmt.Fprintf(out, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(d), marginTop+plotHeight+legendLine, d.Milliseconds())
	}
	for _, share := range []float64{0, 0.5, 1} {
		fmt.Fprintf(out, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`, marginLeft, y(share), marginLeft+plotWidth, y(share))
		fmt.Fprintf(out, `<text x="%d" y="%.1f" text-anchor="end">%.0f %%</text>`+"\n", marginLeft-tickGap, y(share)+tickGap, percent*share)
	}
	for i, c := range curves {
		colour := colours[i%len(colours)]
		sorted := slices.Sorted(slices.Values(c.times))
		fmt.Fprintf(out, `<path fill="none" stroke="%s" stroke-width="2" d="M%.1f %.1f`, colour, x(sorted[0]), y(0))
		for k, d := range sorted {
			fmt.Fprintf(out, " H%.1f V%.1f", x(d), y(float64(k+1)/float64(len(sorted))))
		}
		fmt.Fprintln(out, `"/>`)
		at := marginTop + legendLine*i
		fmt.Fprintf(out, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/>`, marginLeft+plotWidth+legendGap, at, colour)
		fmt.Fprintf(out, `<text x="%d" y="%d">%s</text>`+"\n", marginLeft+plotWidth+legendGap+legendLine, at+legendGap-2, html.EscapeString(c.name))
	}
}

// niceStep is a round time of which a handful makes up the whole.
func niceStep(whole time.Duration) time.Duration {
	const handful = 8
	for unit := time.Millisecond; ; unit *= 10 {
		for _, step := range []time.Duration{unit, 2 * unit, 5 * unit} {
			if whole < handful*step {
				return step
			}
		}
	}
}
