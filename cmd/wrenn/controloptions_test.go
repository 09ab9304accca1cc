package main

import (
	"maps"
	"testing"
)

func TestWarmFlag(t *testing.T) {
	var f warmFlag
	for _, text := range []string{"web=2", "db.v1=100"} {
		if err := f.Set(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if want := (warmFlag{"web": 2, "db.v1": 100}); !maps.Equal(f, want) {
		t.Errorf("%v", f)
	}
	for _, text := range []string{"", "web", "=2", "web=0", "web=-1", "web=101", "web=two", "web=2=3"} {
		if err := f.Set(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
