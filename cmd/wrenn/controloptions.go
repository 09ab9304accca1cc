package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// controlOptions is what the control floor is told.
type controlOptions struct {
	// warm says of which snapshots how many sandboxes are kept ready.
	warm warmFlag
}

// addFlags adds the flags that are about the control floor.
func (o *controlOptions) addFlags(f *pflag.FlagSet) {
	f.Var(&o.warm, "warm", "keep N sandboxes of the snapshot NAME restored ahead of demand; may be repeated (default none)")
}

// maxWarm is how many sandboxes of one snapshot can be kept ready.
const maxWarm = 100

// warmFlag is a repeated flag of NAME=N.
type warmFlag map[string]int

func (f *warmFlag) String() string { return "" }

// Type is the placeholder of the help text.
func (f *warmFlag) Type() string { return "NAME=N" }

func (f *warmFlag) Set(text string) error {
	name, count, ok := strings.Cut(text, "=")
	n, err := strconv.Atoi(count)
	if !ok || name == "" || err != nil || n < 1 || n > maxWarm {
		return fmt.Errorf("want a snapshot's name and a number from 1 to %d, such as web-ready=2", maxWarm)
	}
	if *f == nil {
		*f = warmFlag{}
	}
	(*f)[name] = n
	return nil
}
