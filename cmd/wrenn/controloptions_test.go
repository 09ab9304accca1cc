package main

import (
	"fmt"
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

func TestTrustedProxiesFlag(t *testing.T) {
	var f networksFlag
	for _, text := range []string{"10.1.2.3/8, ::1", "192.0.2.7"} {
		if err := f.Set(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if got := fmt.Sprint(f); got != "[10.0.0.0/8 ::1/128 192.0.2.7/32]" {
		t.Errorf("%s", got)
	}
	for _, text := range []string{"", "localhost", "10.0.0.0/33", "10.0.0.0/8,", "fe80::1%eth0", "::ffff:10.0.0.1"} {
		if err := new(networksFlag).Set(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
