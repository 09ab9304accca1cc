package metering

import (
	"context"
	"time"
)

const percent = 100

// Run samples what is tracked until ctx ends, and writes all histories then. It is called
// once.
func (m *Meter) Run(ctx context.Context) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	var all []*tracked
	for {
		select {
		case <-ctx.Done():
			m.stop()
			return
		case <-ticker.C:
		}
		all = m.list(all[:0])
		for _, t := range all {
			m.look(ctx, t)
		}
		// In many small portions: as many as have to be so that each is written in time.
		m.writeOldest(all, int(sampleEvery*time.Duration(len(all))/writeEvery)+1)
	}
}

func (m *Meter) list(into []*tracked) []*tracked {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tracked {
		into = append(into, t)
	}
	return into
}

// look takes one sample of one sandbox.
func (m *Meter) look(ctx context.Context, t *tracked) {
	began := time.Now()
	if began.Before(t.skipUntil) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	used, err := m.usage(ctx, t.id)
	cancel()
	now := time.Now()
	if now.Sub(began) >= patience {
		t.skipUntil = now.Add(leftAlone)
	}
	if err != nil {
		// It may just be ending, which is somebody else's to tell.
		if !t.failed {
			m.log.Debug("cannot tell what a sandbox uses", "sandbox", t.id, "error", err)
		}
		t.failed, t.baseAt = true, time.Time{}
		return
	}
	t.failed = false
	t.take(now, used)
}

// take adds a sample. The first one only says where the counting begins.
func (t *tracked) take(now time.Time, used Use) {
	base, since := t.base, now.Sub(t.baseAt)
	known := !t.baseAt.IsZero() && since > 0 && used.CPU >= base.CPU
	t.base, t.baseAt = used, now
	if !known {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	before := t.series.latest()
	sent, received := grown(base.SentBytes, used.SentBytes), grown(base.ReceivedBytes, used.ReceivedBytes)
	t.series.limits = used.Limits
	t.series.add(sample{
		at: now.UnixMilli(), cpu: float32(percent * float64(used.CPU-base.CPU) / float64(since)),
		memoryKiB: toKiB(used.MemoryBytes), diskKiB: toKiB(used.DiskBytes), processes: uint32(max(0, used.Processes)),
		sent: before.sent + sent, received: before.received + received,
		sentRate: rate(sent, since), receivedRate: rate(received, since),
	})
}

// grown is by how much a counter has grown that may have begun anew.
func grown(before, now uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// rate returns bits per second.
func rate(bytes uint64, d time.Duration) float32 {
	const bitsPerByte = 8
	return float32(bitsPerByte * float64(bytes) / d.Seconds())
}

// writeOldest writes the histories that have waited longest for it, at most n.
func (m *Meter) writeOldest(all []*tracked, n int) {
	due := time.Now().Add(-writeEvery)
	for _, t := range all {
		if n == 0 {
			return
		}
		if t.written.After(due) {
			continue
		}
		n--
		t.written = time.Now()
		t.mu.Lock()
		if !t.ended {
			if err := m.write(t); err != nil {
				m.log.Warn("cannot write metrics", "sandbox", t.id, "error", err)
			}
		}
		t.mu.Unlock()
	}
}

// stop writes everything; samples that come later count no more.
func (m *Meter) stop() {
	for _, t := range m.list(nil) {
		if err := m.Untrack(t.id); err != nil {
			m.log.Warn("cannot write metrics", "sandbox", t.id, "error", err)
		}
	}
}
