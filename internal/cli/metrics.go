package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/api"
)

// chartWidth is how many columns a chart has at most.
const chartWidth = 60

func newMetrics(a *app) *cobra.Command {
	var span string
	cmd := command(&cobra.Command{
		Use:   "metrics ID",
		Short: "Show what a sandbox has used, and may use: processor, memory, disk, processes, network",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !api.MetricsRange(span).Valid() {
				return usageErrorf(cmd, "--range %q is none of 5m, 10m, 1h, 2h, 6h, 12h, 24h", span)
			}
			s, err := connect()
			if err != nil {
				return err
			}
			used, err := decode[api.Metrics](s.api.GetMetrics(cmd.Context(), args[0], &api.GetMetricsParams{Range: api.MetricsRange(span)}))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), used)
			}
			return printMetrics(cmd.OutOrStdout(), used.Points)
		},
	}, named(allArguments, takes(1, 1, "metrics wants one sandbox's id")))
	cmd.Flags().StringVar(&span, "range", "10m", "how far back: 5m, 10m, 1h, 2h, 6h, 12h or 24h")
	return cmd
}

// printMetrics draws a line of bars for each thing that was measured.
func printMetrics(w io.Writer, points []api.MetricsPoint) error {
	if len(points) == 0 {
		_, err := fmt.Fprintln(w, "nothing was measured in this time")
		return err
	}
	percent := func(v float64) string { return fmt.Sprintf("%.1f %%", v) }
	size := func(v float64) string { return byteSize(int64(v)) }
	count := func(v float64) string { return strconv.Itoa(int(v)) }
	latest := points[len(points)-1]
	for _, row := range []struct {
		name  string
		value func(api.MetricsPoint) float64
		limit float64 // 0: there is none
		text  func(float64) string
	}{
		{"cpu", func(p api.MetricsPoint) float64 { return p.CPUPct }, latest.CPULimitPct, percent},
		{"memory", func(p api.MetricsPoint) float64 { return float64(p.MemBytes) }, float64(latest.MemLimitBytes), size},
		{"disk", func(p api.MetricsPoint) float64 { return float64(p.DiskBytes) }, float64(latest.DiskLimitBytes), size},
		{"pids", func(p api.MetricsPoint) float64 { return float64(p.Pids) }, float64(latest.PidsLimit), count},
		{"sent", func(p api.MetricsPoint) float64 { return float64(p.NetSentBps) }, float64(latest.NetLimitBps), bitRate},
		{"received", func(p api.MetricsPoint) float64 { return float64(p.NetReceivedBps) }, float64(latest.NetLimitBps), bitRate},
	} {
		values := make([]float64, len(points))
		for i, p := range points {
			values[i] = row.value(p)
		}
		limit := ""
		if row.limit > 0 {
			limit = ", limit " + row.text(row.limit)
		}
		_, err := fmt.Fprintf(w, "%-8s %s  now %s, at most %s%s\n", row.name, sparkline(values, chartWidth),
			row.text(values[len(values)-1]), row.text(slices.Max(values)), limit)
		if err != nil {
			return err
		}
	}
	first, last := points[0].Time.Local(), latest.Time.Local()
	_, err := fmt.Fprintf(w, "%-8s %s to %s\n%-8s sent %s and received %s since it was made\n", "", first.Format(time.TimeOnly), last.Format(time.TimeOnly),
		"", byteSize(latest.NetSentBytes), byteSize(latest.NetReceivedBytes))
	return err
}

// bitRate writes bits per second.
func bitRate(v float64) string {
	units := []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s"}
	const step = 1000
	i := 0
	for v >= step && i < len(units)-1 {
		v, i = v/step, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// sparkline draws values as bars, the largest of them full. When there are more values
// than columns a column shows the largest of its own, so that no peak is lost.
func sparkline(values []float64, width int) string {
	bars := []rune("▁▂▃▄▅▆▇█")
	columns := min(len(values), width)
	most := slices.Max(values)
	var b strings.Builder
	for i := range columns {
		from, to := i*len(values)/columns, (i+1)*len(values)/columns
		v := slices.MaxFunc(values[from:to], cmp.Compare[float64])
		level := 0
		if most > 0 {
			level = int(v / most * float64(len(bars)-1))
		}
		b.WriteRune(bars[min(max(level, 0), len(bars)-1)])
	}
	return b.String()
}
