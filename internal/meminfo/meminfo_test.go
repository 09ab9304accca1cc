package meminfo

import "testing"

func TestParse(t *testing.T) {
	for text, want := range map[string]uint64{
		"MemTotal:  9 kB\nMemAvailable:   17408 kB\nBuffers: 1 kB\n": 17408 << 10,
		"MemAvailable: 1 kB":     1 << 10,
		"MemTotal: 9 kB\n":       0,
		"MemAvailable: many kB":  0,
		"XMemAvailable: 5 kB\n":  0,
		"MemAvailable: -17 kB\n": 0,
		"":                       0,
	} {
		if got, err := Parse(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestAvailable(t *testing.T) {
	if got, err := Available(); got == 0 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
}
