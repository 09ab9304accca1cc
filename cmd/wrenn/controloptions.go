package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/wrenn-sandbox/wrenn/internal/cli"
	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/control/webproxy"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// controlOptions is what the control floor is told.
type controlOptions struct {
	// warm says of which snapshots how many sandboxes are kept ready.
	warm warmFlag
	// snapshotMaxAge and snapshotMaxCount say which snapshots go by themselves; 0: none.
	snapshotMaxAge   cli.AgeFlag
	snapshotMaxCount int
	// proxyRate is how many requests a second the ports of one sandbox get; 0: no limit.
	proxyRate float64
	// proxyConnections is how many requests and upgraded connections of one sandbox may be
	// open at once.
	proxyConnections int
	// trustedProxies is where the proxies in front of us are.
	trustedProxies networksFlag
}

// addFlags adds the flags that are about the control floor.
func (o *controlOptions) addFlags(f *pflag.FlagSet) {
	f.Var(&o.warm, "warm", "keep N sandboxes of the snapshot NAME restored ahead of demand; may be repeated (default none)")
	f.Var(&o.snapshotMaxAge, "snapshot-max-age", "remove snapshots that are older, such as 12h or 30d, and not in use, however few there are (default: keep them)")
	f.IntVar(&o.snapshotMaxCount, "snapshot-max-count", 0, "keep so many snapshots at most, the newest ones and those in use, however young the others are; 0: all of them")
	f.Float64Var(&o.proxyRate, "proxy-rate", 0, "requests a second that the ports of one sandbox get from outside; 0: as many as come")
	f.IntVar(&o.proxyConnections, "proxy-connections", webproxy.DefaultMaxConnections, "requests and WebSockets to the ports of one sandbox that may be open at once")
	f.Var(&o.trustedProxies, "trusted-proxies", "addresses or networks of proxies in front of Wrenn whose X-Forwarded-For, -Proto and -Host are passed on to applications, such as 10.0.0.0/8,::1 (default none)")
}

// check says which flag is wrong.
func (o *controlOptions) check() error {
	switch {
	case o.snapshotMaxCount < 0:
		return fault.New(fault.InvalidRequest, "--snapshot-max-count is %d; it must be 0 or more", o.snapshotMaxCount)
	case o.proxyRate < 0:
		return fault.New(fault.InvalidRequest, "--proxy-rate is %v; it must be 0 or more", o.proxyRate)
	case o.proxyConnections < 1:
		return fault.New(fault.InvalidRequest, "--proxy-connections is %d; it must be at least 1", o.proxyConnections)
	}
	return nil
}

// retention is which snapshots go by themselves.
func (o *controlOptions) retention() sandbox.Retention {
	return sandbox.Retention{MaxAge: time.Duration(o.snapshotMaxAge), MaxCount: o.snapshotMaxCount}
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

// networksFlag is a flag of networks, with commas between them; it may be repeated.
type networksFlag []netip.Prefix

func (f *networksFlag) String() string { return "" }

// Type is the placeholder of the help text.
func (f *networksFlag) Type() string { return "CIDR,..." }

func (f *networksFlag) Set(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		network, err := netip.ParsePrefix(part)
		if ip, single := netip.ParseAddr(part); single == nil && ip.Zone() == "" {
			network, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		if err != nil || network.Addr().Is4In6() {
			return fmt.Errorf("%q is neither an address nor a network such as 10.0.0.0/8", part)
		}
		*f = append(*f, network.Masked())
	}
	return nil
}
