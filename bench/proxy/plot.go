package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"time"

	"github.com/wrenn-sandbox/wrenn/bench/report"
)

// curve is the distribution of the times of one thing.
type curve struct {
	name  string
	times report.Times
}

// The measures of the plot, in pixels.
const (
	width, height                       = 820, 360
	marginLeft, marginTop               = 56, 36
	marginRight, marginBottom           = 24, 150
	plotWidth, plotHeight               = width - marginLeft - marginRight, height - marginTop - marginBottom
	legendLine, square, tickGap         = 18, 12, 5
	legendTop                           = marginTop + plotHeight + 34
	percent                     float64 = 100
)

var colours = []string{"#1f77b4", "#d62728", "#aec7e8", "#ff7f0e", "#2ca02c"}

// plot draws the share of round trips that took at least so long, both on scales of powers of
// ten, so that the slow ones can be seen.
func plot(curves []curve) []byte {
	const leastShare = 0.001
	low, high := time.Hour, time.Duration(0)
	for _, c := range curves {
		low, high = min(low, slices.Min(c.times)), max(high, slices.Max(c.times))
	}
	from, to := math.Floor(math.Log10(float64(low))), math.Ceil(math.Log10(float64(high)))
	x := func(d time.Duration) float64 {
		return marginLeft + plotWidth*(math.Log10(float64(d))-from)/max(to-from, 1)
	}
	y := func(share float64) float64 {
		return marginTop + plotHeight*math.Log10(max(share, leastShare))/math.Log10(leastShare)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&out, `<text x="%d" y="20" font-weight="bold">terminal echo: share of round trips that took longer than a time</text>`+"\n", marginLeft)
	for power := from; power <= to; power++ {
		d := time.Duration(math.Pow(10, power))
		fmt.Fprintf(&out, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`, x(d), marginTop, x(d), marginTop+plotHeight)
		fmt.Fprintf(&out, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(d), marginTop+plotHeight+legendLine, d)
	}
	for share := 1.0; share >= leastShare*0.99; share /= 10 {
		fmt.Fprintf(&out, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`, marginLeft, y(share), marginLeft+plotWidth, y(share))
		fmt.Fprintf(&out, `<text x="%d" y="%.1f" text-anchor="end">%g %%</text>`+"\n", marginLeft-tickGap, y(share)+tickGap, math.Round(percent*share*100)/100)
	}
	for i, c := range curves {
		colour, sorted := colours[i%len(colours)], slices.Sorted(slices.Values(c.times))
		fmt.Fprintf(&out, `<path fill="none" stroke="%s" stroke-width="2" d="M%.1f %.1f`, colour, x(sorted[0]), y(1))
		for k, d := range sorted {
			fmt.Fprintf(&out, " H%.1f V%.1f", x(d), y(1-float64(k+1)/float64(len(sorted))))
		}
		fmt.Fprintln(&out, `"/>`)
		at := legendTop + legendLine*i
		fmt.Fprintf(&out, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`, marginLeft, at, square, square, colour)
		fmt.Fprintf(&out, `<text x="%d" y="%d">%s</text>`+"\n", marginLeft+legendLine, at+square-2, html.EscapeString(c.name))
	}
	fmt.Fprintln(&out, "</svg>")
	return out.Bytes()
}
