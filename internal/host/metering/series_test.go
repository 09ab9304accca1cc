package metering

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// start is a time at which a step of every resolution begins.
var start = time.Unix(1700000000, 0).Truncate(time.Hour)

// filled returns a series of that many samples, two a second, all of it
// made from their number.
func filled(n int) *series {
	s := newSeries()
	s.limits = someLimits
	for i := range n {
		s.add(nth(i))
	}
	return s
}

var someLimits = Limits{CPUPct: 200, MemoryBytes: 576 << 20, DiskBytes: 10 << 30, Processes: 256, NetworkBitsPerSecond: 1_000_000}

func nth(i int) sample {
	return sample{
		at: start.Add(time.Duration(i) * sampleEvery).UnixMilli(), cpu: float32(i % 60), memoryKiB: uint32(i%60) << 10, diskKiB: uint32(i),
		processes: uint32(i % 60), sent: uint64(i) * 1000, received: uint64(i) << 33, sentRate: float32(2 * (i % 60)), receivedRate: float32(4 * (i % 60)),
	}
}

// newSample is one without a network.
func newSample(at time.Time, cpuPct float64, memory, disk uint64) sample {
	return sample{at: at.UnixMilli(), cpu: float32(cpuPct), memoryKiB: toKiB(memory), diskKiB: toKiB(disk)}
}

func TestResolutions(t *testing.T) {
	const hours = 25
	n := int(hours * time.Hour / sampleEvery)
	s := filled(n)
	now := start.Add(time.Duration(n-1) * sampleEvery)
	for _, test := range []struct {
		back, step time.Duration
		points     int
	}{
		{time.Minute, 500 * time.Millisecond, 121},
		{10 * time.Minute, 500 * time.Millisecond, 1200},
		{10*time.Minute + time.Second, 30 * time.Second, 21},
		{2 * time.Hour, 30 * time.Second, 241}, // 240 and the one that has not ended
		{2*time.Hour + time.Second, 5 * time.Minute, 25},
		{24 * time.Hour, 5 * time.Minute, 289},
	} {
		points := s.since(now.Add(-test.back), now)
		if len(points) != test.points {
			t.Errorf("%v back: %d points, want %d", test.back, len(points), test.points)
		}
		for i := range points[1:] {
			if step := points[i+1].Time.Sub(points[i].Time); step != test.step {
				t.Fatalf("%v back: points %v apart, want %v", test.back, step, test.step)
			}
		}
		if last := points[len(points)-1]; !last.Time.Equal(now) {
			t.Errorf("%v back: the latest point is %v old", test.back, now.Sub(last.Time))
		}
	}
	for i := range s.rings {
		if got, most := cap(s.rings[i].samples), 2*s.rings[i].limit; got > most {
			t.Errorf("resolution %d has room for %d samples", i, got)
		}
	}
}

func TestASummaryIsMeanMostAndLatest(t *testing.T) {
	s := filled(181) // three steps of 30 s, and the first sample of the fourth
	now := start.Add(90 * time.Second)
	points := s.since(now.Add(-time.Hour), now)
	var want []Point
	for i := range 3 {
		latest := 60*i + 59
		want = append(want, Point{
			Time: start.Add(time.Duration(latest) * sampleEvery), CPUPct: 29.5, MemoryBytes: 59 << 20, DiskBytes: uint64(latest) << 10, Processes: 59,
			SentBytes: uint64(latest) * 1000, ReceivedBytes: uint64(latest) << 33, SentRate: 59, ReceivedRate: 118, Limits: someLimits,
		})
	}
	want = append(want, Point{Time: now, DiskBytes: 180 << 10, SentBytes: 180_000, ReceivedBytes: 180 << 33, Limits: someLimits})
	if diff := cmp.Diff(want, points, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Error(diff)
	}
}

// What came before a pause is there after it, and no step is of both.
func TestAGapHasNoPoints(t *testing.T) {
	s := filled(90) // one step and a half
	resumed := start.Add(20 * time.Minute)
	for i := range 61 {
		s.add(newSample(resumed.Add(time.Duration(i)*sampleEvery), 100, 1<<30, 0))
	}
	now := resumed.Add(30 * time.Second)
	points := s.since(now.Add(-time.Hour), now)
	if len(points) != 4 {
		t.Fatalf("%d points: %v", len(points), points)
	}
	for i, want := range []float64{29.5, 14.5, 100, 100} {
		if points[i].CPUPct != want {
			t.Errorf("point %d is %v, want %v", i, points[i].CPUPct, want)
		}
	}
	if points := s.since(now.Add(-10*time.Minute), now); len(points) != 61 {
		t.Errorf("%d points in the last ten minutes, want those since the pause", len(points))
	}
}

func TestAClockThatIsSetBack(t *testing.T) {
	s := filled(200)
	back := start.Add(50 * time.Second) // between the steps of 30 s
	for i := range 10 {
		s.add(newSample(back.Add(time.Duration(i)*sampleEvery), 1, 1, 1))
	}
	now := back.Add(5 * time.Second)
	for level := range s.rings {
		r := &s.rings[level]
		for i := 1; i < r.len(); i++ {
			if r.at(i).at <= r.at(i-1).at {
				t.Fatalf("resolution %d is not in order at %d", level, i)
			}
		}
	}
	points := s.since(now.Add(-time.Minute), now)
	if len(points) != 110 || points[len(points)-1].Time.After(now) {
		t.Errorf("%d points", len(points))
	}
	if _, err := decode(s.encode()); err != nil {
		t.Errorf("it does not come back: %v", err)
	}
}

func TestLargeFigures(t *testing.T) {
	const tib = 1 << 40
	p := newSample(start, 6400.25, 3*tib+1, math.MaxUint64).point(Limits{})
	if p.CPUPct != 6400.25 || p.MemoryBytes != 3*tib+1<<10 || p.DiskBytes != 4*tib-1<<10 {
		t.Errorf("%+v", p)
	}
}

func TestAFileComesBackAsItWas(t *testing.T) {
	for _, n := range []int{0, 1, 59, 61, 5000, 200_000} {
		s := filled(n)
		data := s.encode()
		back, err := decode(data)
		if err != nil {
			t.Fatal(err)
		}
		// What matters is what is told, and what is added from now on.
		for i := range 700 {
			s.add(nth(n + i))
			back.add(nth(n + i))
		}
		now := start.Add(time.Duration(n+700) * sampleEvery)
		for _, r := range resolutions {
			if diff := cmp.Diff(s.since(now.Add(-r.span), now), back.since(now.Add(-r.span), now), cmpopts.EquateApprox(0, 0.001)); diff != "" {
				t.Fatalf("%d samples, %v: %s", n, r.span, diff)
			}
		}
	}
}

// encodeFirst writes a series as the first version of the format had it.
func encodeFirst(s *series) []byte {
	data := []byte(firstMagic)
	for i := range s.rings {
		r := &s.rings[i]
		data = binary.AppendUvarint(data, uint64(r.len()))
		var last fields
		for k := range r.len() {
			next := r.at(k).fields()
			for j := range firstFields {
				data = binary.AppendVarint(data, next[j]-last[j])
			}
			last = next
		}
	}
	return binary.BigEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
}

// What a server before this one has kept is there, and goes on.
func TestAFileOfTheFirstVersionIsRead(t *testing.T) {
	const n = 5000
	s := filled(n)
	back, err := decode(encodeFirst(s))
	if err != nil {
		t.Fatal(err)
	}
	now := start.Add((n - 1) * sampleEvery)
	lacks := cmpopts.IgnoreFields(Point{}, "Processes", "SentBytes", "ReceivedBytes", "SentRate", "ReceivedRate", "Limits")
	for _, r := range resolutions {
		if diff := cmp.Diff(s.since(now.Add(-r.span), now), back.since(now.Add(-r.span), now), lacks); diff != "" {
			t.Fatalf("%v: %s", r.span, diff)
		}
	}
	back.limits = someLimits
	back.add(nth(n))
	again, err := decode(back.encode())
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(sampleEvery)
	points := again.since(now.Add(-time.Minute), now)
	if last := points[len(points)-1]; last.Processes != n%60 || last.ReceivedBytes != n<<33 || points[0].Limits != someLimits {
		t.Errorf("%+v", last)
	}
}

func TestAnIdleSandboxTakesLittleRoom(t *testing.T) {
	s := newSeries()
	const n = 200_000
	for i := range n {
		jitter := time.Duration(i%3) * time.Millisecond // no two steps are quite alike
		s.add(newSample(start.Add(time.Duration(i)*sampleEvery+jitter), 0.1*float64(i%2), 20<<20, 1<<20))
	}
	if got := len(s.encode()); got > 12<<10 {
		t.Errorf("%d bytes", got)
	}
}

func FuzzDecode(f *testing.F) {
	for _, n := range []int{0, 3, 1300} {
		f.Add(filled(n).encode())
	}
	f.Add([]byte(magic))
	f.Add(encodeFirst(filled(1300)))
	f.Fuzz(func(t *testing.T, data []byte) {
		decodeBoth(t, data)
	})
}

// decodeBoth decodes data, and data with the checksum that it should have.
func decodeBoth(t *testing.T, data []byte) {
	t.Helper()
	for _, data := range [][]byte{data, sealed(data)} {
		s, err := decode(data)
		if err != nil {
			continue
		}
		for i := range s.rings {
			if r := &s.rings[i]; r.len() > r.limit {
				t.Errorf("%d samples in resolution %d", r.len(), i)
			}
		}
		_ = s.since(time.Time{}, start)
		s.add(newSample(start, 1, 1, 1))
		if _, err := decode(s.encode()); err != nil {
			t.Errorf("what was taken cannot be written: %v", err)
		}
	}
}
