package metering

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// start is a time at which a step of every resolution begins.
var start = time.Unix(1700000000, 0).Truncate(time.Hour)

// filled returns a series of that many samples, two a second, with cpu, memory and disk
// made from their number.
func filled(n int) *series {
	s := newSeries()
	for i := range n {
		s.add(nth(i))
	}
	return s
}

func nth(i int) sample {
	return newSample(start.Add(time.Duration(i)*sampleEvery), float64(i%60), uint64(i%60)<<20, uint64(i)<<10)
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
	for i := range s {
		if got, most := cap(s[i].samples), 2*s[i].limit; got > most {
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
		want = append(want, Point{start.Add(time.Duration(latest) * sampleEvery), 29.5, 59 << 20, uint64(latest) << 10})
	}
	want = append(want, Point{now, 0, 0, 180 << 10})
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
	for level := range s {
		for i := 1; i < s[level].len(); i++ {
			if s[level].at(i).at <= s[level].at(i-1).at {
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
	p := newSample(start, 6400.25, 3*tib+1, math.MaxUint64).point()
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

func TestAnIdleSandboxTakesLittleRoom(t *testing.T) {
	s := newSeries()
	const n = 200_000
	for i := range n {
		s.add(newSample(start.Add(time.Duration(i)*sampleEvery), 0.1, 20<<20, 1<<20))
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
		for i := range s {
			if s[i].len() > s[i].limit {
				t.Errorf("%d samples in resolution %d", s[i].len(), i)
			}
		}
		_ = s.since(time.Time{}, start)
		s.add(newSample(start, 1, 1, 1))
		if _, err := decode(s.encode()); err != nil {
			t.Errorf("what was taken cannot be written: %v", err)
		}
	}
}
