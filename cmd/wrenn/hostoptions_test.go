package main

import (
	"math"
	"testing"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/host/sandbox"
)

func TestMemoryOvercommitFlag(t *testing.T) {
	for value, good := range map[float64]bool{
		0.5: true, defaultOvercommit: true, maxOvercommit: true,
		0: false, -1: false, maxOvercommit + 1: false, math.NaN(): false, math.Inf(1): false, math.Inf(-1): false,
	} {
		err := (&hostOptions{onStop: sandbox.StopKeep, overcommit: value}).check()
		if good != (err == nil) || err != nil && !fault.Is(err, fault.InvalidRequest) {
			t.Errorf("%v: %v", value, err)
		}
	}
}
