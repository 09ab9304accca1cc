package webproxy

import (
	"bufio"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

type counter = atomic.Int64

// latencyBounds are the upper bounds of the histogram's steps, in seconds.
var latencyBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

// statusClasses is how many there are, 1xx to 5xx.
const statusClasses = 5

// stats counts what passes to and from one sandbox. The zero value is ready, and it is safe
// for concurrent use.
type stats struct {
	answers        [statusClasses]counter
	received, sent counter // bytes, from clients and to them
	// latency counts answers by the time to their header; the last is those beyond all
	// bounds.
	latency     [len(latencyBounds) + 1]counter
	nanoseconds counter
}

// answered counts an answer and the time that its header took.
func (s *stats) answered(status int, took time.Duration) {
	s.answers[min(max(status/100, 1), statusClasses)-1].Add(1)
	step := 0
	for step < len(latencyBounds) && took.Seconds() > latencyBounds[step] {
		step++
	}
	s.latency[step].Add(1)
	s.nanoseconds.Add(took.Nanoseconds())
}

// WriteMetrics writes the counters of the sandboxes that were asked for lately, in the text
// format of Prometheus. Those of a sandbox end with it.
func (e *Edge) WriteMetrics(out io.Writer) error {
	w := bufio.NewWriter(out)
	all := e.guests.all()
	family := func(name, kind, help string, each func(gu *guest)) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for _, gu := range all {
			each(gu)
		}
	}
	family("wrenn_proxy_requests_total", "counter", "Requests for ports of a sandbox, by the class of the answer's status.", func(gu *guest) {
		for i := range gu.stats.answers {
			fmt.Fprintf(w, "wrenn_proxy_requests_total{sandbox=%q,code=\"%dxx\"} %d\n", gu.id, i+1, gu.stats.answers[i].Load())
		}
	})
	family("wrenn_proxy_received_bytes_total", "counter", "Bytes of bodies and upgraded connections from clients.", func(gu *guest) {
		fmt.Fprintf(w, "wrenn_proxy_received_bytes_total{sandbox=%q} %d\n", gu.id, gu.stats.received.Load())
	})
	family("wrenn_proxy_sent_bytes_total", "counter", "Bytes of bodies and upgraded connections to clients.", func(gu *guest) {
		fmt.Fprintf(w, "wrenn_proxy_sent_bytes_total{sandbox=%q} %d\n", gu.id, gu.stats.sent.Load())
	})
	family("wrenn_proxy_open", "gauge", "Requests and upgraded connections under way.", func(gu *guest) {
		fmt.Fprintf(w, "wrenn_proxy_open{sandbox=%q} %d\n", gu.id, gu.openCount())
	})
	family("wrenn_proxy_response_seconds", "histogram", "Time from a request to the header of its answer.", func(gu *guest) {
		writeHistogram(w, gu)
	})
	return w.Flush()
}

func writeHistogram(w io.Writer, gu *guest) {
	const name = "wrenn_proxy_response_seconds"
	total := int64(0)
	for i, bound := range latencyBounds {
		total += gu.stats.latency[i].Load()
		fmt.Fprintf(w, "%s_bucket{sandbox=%q,le=\"%g\"} %d\n", name, gu.id, bound, total)
	}
	total += gu.stats.latency[len(latencyBounds)].Load()
	fmt.Fprintf(w, "%s_bucket{sandbox=%q,le=\"+Inf\"} %d\n", name, gu.id, total)
	fmt.Fprintf(w, "%s_sum{sandbox=%q} %g\n", name, gu.id, time.Duration(gu.stats.nanoseconds.Load()).Seconds())
	fmt.Fprintf(w, "%s_count{sandbox=%q} %d\n", name, gu.id, total)
}
