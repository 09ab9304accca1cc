package metering

import (
	"time"
)

// sample is a Point as it is kept, without its limits: 48 bytes, of which a sandbox has up
// to 1728.
type sample struct {
	at                     int64   // milliseconds since 1970
	cpu                    float32 // percent of one processor
	memoryKiB              uint32
	diskKiB                uint32
	processes              uint32
	sent, received         uint64  // bytes since the sandbox was made
	sentRate, receivedRate float32 // bits per second
}

// toKiB rounds up, and stays at 4 TiB for what is more.
func toKiB(bytes uint64) uint32 {
	const kib = 1 << 10
	return uint32(min(bytes/kib+min(bytes%kib, 1), 1<<32-1))
}

func (s sample) point(limits Limits) Point {
	const kib = 1 << 10
	return Point{
		Time: time.UnixMilli(s.at), CPUPct: float64(s.cpu),
		MemoryBytes: uint64(s.memoryKiB) * kib, DiskBytes: uint64(s.diskKiB) * kib, Processes: int(s.processes),
		SentBytes: s.sent, ReceivedBytes: s.received, SentRate: float64(s.sentRate), ReceivedRate: float64(s.receivedRate),
		Limits: limits,
	}
}

// The resolutions, the finest first. The finest spans several of every other's steps, so
// that those are computed from it alone.
var resolutions = [...]struct{ step, span time.Duration }{
	{500 * time.Millisecond, 10 * time.Minute},
	{30 * time.Second, 2 * time.Hour},
	{5 * time.Minute, 24 * time.Hour},
}

const finest = 0

// series is what is kept of one sandbox: a ring of samples for each resolution, and the
// latest limits. It is not safe for concurrent use.
type series struct {
	rings  [len(resolutions)]ring
	limits Limits
}

// newSeries returns an empty series.
func newSeries() *series {
	var s series
	for i, r := range resolutions {
		s.rings[i].limit = int(r.span / r.step)
	}
	return &s
}

// add appends a sample of now, and a sample to each coarser resolution whose step has ended
// with the one before.
func (s *series) add(now sample) {
	fine := &s.rings[finest]
	// The wall clock was set back: what it said before did not happen yet.
	for i := range s.rings {
		s.rings[i].dropFrom(now.at)
	}
	if fine.len() > 0 {
		last := fine.at(fine.len() - 1)
		for i := finest + 1; i < len(s.rings); i++ {
			step := resolutions[i].step.Milliseconds()
			if bucket := last.at / step; bucket != now.at/step {
				s.rings[i].push(s.summary(bucket*step, step))
			}
		}
	}
	fine.push(now)
}

// summary is the one sample that stands for those of the finest resolution in the step that
// begins at from: the mean of the cpu and of the network's rates, the most memory and processes,
// and the latest of what is left. It has the time of the latest.
func (s *series) summary(from, step int64) sample {
	fine := &s.rings[finest]
	var sum sample
	var cpu, sent, received float64
	n := 0
	for i := fine.len() - 1; i >= 0; i-- {
		one := fine.at(i)
		if one.at < from {
			break
		}
		if one.at >= from+step {
			continue
		}
		if n == 0 {
			sum = one
		}
		cpu += float64(one.cpu)
		sent += float64(one.sentRate)
		received += float64(one.receivedRate)
		sum.memoryKiB = max(sum.memoryKiB, one.memoryKiB)
		sum.processes = max(sum.processes, one.processes)
		n++
	}
	if n > 0 {
		sum.cpu = float32(cpu / float64(n))
		sum.sentRate, sum.receivedRate = float32(sent/float64(n)), float32(received/float64(n))
	}
	return sum
}

// since returns the points from a time on, oldest first, in the finest resolution that
// spans what is asked for. The step that has not ended yet is a point too.
func (s *series) since(from, now time.Time) []Point {
	level := finest
	for level < len(s.rings)-1 && now.Sub(from) > resolutions[level].span {
		level++
	}
	var points []Point
	for i := range s.rings[level].len() {
		if one := s.rings[level].at(i); one.at >= from.UnixMilli() {
			points = append(points, one.point(s.limits))
		}
	}
	if fine := &s.rings[finest]; level > finest && fine.len() > 0 {
		step := resolutions[level].step.Milliseconds()
		open := s.summary(fine.at(fine.len()-1).at/step*step, step)
		if open.at >= from.UnixMilli() {
			points = append(points, open.point(s.limits))
		}
	}
	return points
}

// latest is the newest sample; zero: there is none.
func (s *series) latest() sample {
	fine := &s.rings[finest]
	if fine.len() == 0 {
		return sample{}
	}
	return fine.at(fine.len() - 1)
}

// ring holds the latest samples up to a limit and grows only as far as it is filled.
type ring struct {
	limit   int
	samples []sample
	first   int // where the oldest is once it is full
}

func (r *ring) len() int { return len(r.samples) }

// at returns the i-th oldest.
func (r *ring) at(i int) sample { return r.samples[(r.first+i)%len(r.samples)] }

func (r *ring) push(s sample) {
	if len(r.samples) < r.limit {
		r.samples = append(r.samples, s)
		return
	}
	r.samples[r.first] = s
	r.first = (r.first + 1) % r.limit
}

// dropFrom removes the samples at and after a time.
func (r *ring) dropFrom(at int64) {
	n := r.len()
	for n > 0 && r.at(n-1).at >= at {
		n--
	}
	if n == r.len() {
		return
	}
	left := make([]sample, n)
	for i := range left {
		left[i] = r.at(i)
	}
	r.samples, r.first = left, 0
}
