package snapshot

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func BenchmarkStore(b *testing.B) {
	for _, size := range []int{1 << 20, 256 << 20} {
		data := make([]byte, size)
		_, _ = rand.Read(data)
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			s, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			var phases [6]time.Duration
			var write, verify time.Duration
			n := 0
			for b.Loop() {
				id := fmt.Sprintf("s%d", n)
				n++
				d, err := s.Draft(b.Context(), id, 0)
				if err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				for name, part := range map[string][]byte{"pages.img": data, "pages_meta.img": data[:10000], "checkpoint.img": data[:100000]} {
					if err := os.WriteFile(filepath.Join(d.Dir(), name), part, 0o600); err != nil {
						b.Fatal(err)
					}
				}
				write += time.Since(began)
				c := &commit{draft: d}
				for i, p := range c.phases() {
					began := time.Now()
					if err := p.run(b.Context()); err != nil {
						b.Fatal(err)
					}
					phases[i] += time.Since(began)
				}
				d.done = true
				began = time.Now()
				if err := s.Verify(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				verify += time.Since(began)
				if err := s.Remove(id); err != nil {
					b.Fatal(err)
				}
			}
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(n) }
			b.ReportMetric(ms(write), "ms-write")
			b.ReportMetric(ms(verify), "ms-verify")
			for i, name := range []string{"inspect", "seal", "describe", "dirs", "weigh", "publish", "store", "list"} {
				b.ReportMetric(ms(phases[i]), "ms-"+name)
			}
		})
	}
}
