package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/wrenn-sandbox/wrenn/internal/control/webproxy"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// controlOptions is what the control floor is told.
type controlOptions struct {
	// warm says of which snapshots how many sandboxes are kept ready.
	warm warmFlag
	// proxyRate is how many requests a second the ports of one sandbox get; 0: no limit.
	proxyRate float64
	// proxyConnections is how many requests and upgraded connections of one sandbox may be
	// open at once.
	proxyConnections int
}

// addFlags adds the flags that are about the control floor.
func (o *controlOptions) addFlags(f *pflag.FlagSet) {
	f.Var(&o.warm, "warm", "keep N sandboxes of the snapshot NAME restored ahead of demand; may be repeated (default none)")
	f.Float64Var(&o.proxyRate, "proxy-rate", 0, "requests a second that the ports of one sandbox get from outside; 0: as many as come")
	f.IntVar(&o.proxyConnections, "proxy-connections", webproxy.DefaultMaxConnections, "requests and WebSockets to the ports of one sandbox that may be open at once")
}

// check says which flag is wrong.
func (o *controlOptions) check() error {
	switch {
	case o.proxyRate < 0:
		return fault.New(fault.InvalidRequest, "--proxy-rate is %v; it must be 0 or more", o.proxyRate)
	case o.proxyConnections < 1:
		return fault.New(fault.InvalidRequest, "--proxy-connections is %d; it must be at least 1", o.proxyConnections)
	}
	return nil
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
