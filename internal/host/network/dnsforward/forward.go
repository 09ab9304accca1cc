// Package dnsforward answers a sandbox's DNS queries by asking the host's own resolvers.
//
// One Forwarder serves the whole host; a Server per sandbox listens on the sandbox's
// gateway address and answers that sandbox alone. The package keeps no cache: the
// resolvers of a host have one. It must not know of slots, namespaces or firewalls:
// it is given an address to listen on and the address of the one guest to answer.
package dnsforward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// DefaultResolvConf is where a Linux host names its resolvers.
	DefaultResolvConf = "/etc/resolv.conf"

	// upstreamTimeout is the time that one resolver has to answer one query.
	// A guest's own resolver waits 5 s, so two dead upstreams may come before a good one.
	upstreamTimeout = 2 * time.Second

	// maxQueries bounds the queries of all guests together that wait for an upstream.
	// Each holds one socket, and the file descriptors belong to every sandbox of the host.
	maxQueries = 1024
)

// Forwarder asks the host's resolvers on behalf of guests. It is safe for concurrent use
// and holds nothing open between queries, so it needs no closing.
type Forwarder struct {
	log       *slog.Logger
	upstreams *upstreams
	slots     chan struct{} // a token for each query in flight
}

// New returns a Forwarder that uses the resolvers named in the file resolvConf (empty:
// DefaultResolvConf), which it reads again whenever it changes.
func New(resolvConf string, log *slog.Logger) *Forwarder {
	if resolvConf == "" {
		resolvConf = DefaultResolvConf
	}
	return &Forwarder{
		log:       log,
		upstreams: &upstreams{path: resolvConf},
		slots:     make(chan struct{}, maxQueries),
	}
}

// acquire takes a token without waiting: a query that would have to queue is better
// refused at once, because the guest's resolver tries again by itself.
func acquire(tokens chan struct{}) bool {
	select {
	case tokens <- struct{}{}:
		return true
	default:
		return false
	}
}

// resolve asks one upstream after the other, beginning with the one that answered last,
// until one gives a usable answer. network is "udp" or "tcp", as the guest asked: a
// truncated answer goes back as it is, and the guest asks again over TCP. An answer
// that only says that the upstream failed is kept in case no other does better.
func (f *Forwarder) resolve(ctx context.Context, network string, query *dns.Msg) (*dns.Msg, error) {
	if !acquire(f.slots) {
		return nil, errors.New("too many queries in flight on this host")
	}
	defer func() { <-f.slots }()

	list, err := f.upstreams.current()
	if err != nil {
		return nil, err
	}
	var failure *dns.Msg
	var errs []error
	start := list.preferred()
	for i := range list.servers {
		n := (start + i) % len(list.servers)
		reply, err := exchange(ctx, network, list.servers[n], query)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s over %s: %w", list.servers[n], network, err))
		case reply.Rcode == dns.RcodeServerFailure || reply.Rcode == dns.RcodeRefused:
			failure = reply
		default:
			list.prefer(n)
			return reply, nil
		}
	}
	if failure != nil {
		return failure, nil
	}
	return nil, errors.Join(errs...)
}

// exchange sends query to server under an id of its own and returns the answer. The
// fresh id and the fresh source port, rather than the guest's choice of them, are what
// makes a forged answer hard. It returns at once when ctx ends.
func exchange(ctx context.Context, network, server string, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	conn := &dns.Conn{Conn: raw, UDPSize: dns.MaxMsgSize - 1}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	asked := query.Copy()
	asked.Id = dns.Id()
	if err := conn.WriteMsg(asked); err != nil {
		return nil, err
	}
	for {
		reply, err := conn.ReadMsg()
		if err != nil {
			return nil, err
		}
		if answers(reply, asked) {
			reply.Id = query.Id
			return reply, nil
		}
		if network == "tcp" {
			return nil, errors.New("the answer belongs to another query")
		}
	}
}

// answers reports whether reply is an answer to query and not a stray or forged packet.
// A server that failed may leave the question out.
func answers(reply, query *dns.Msg) bool {
	if !reply.Response || reply.Id != query.Id {
		return false
	}
	if len(reply.Question) == 0 {
		return reply.Rcode != dns.RcodeSuccess
	}
	got, want := reply.Question[0], query.Question[0]
	return got.Qtype == want.Qtype && got.Qclass == want.Qclass &&
		dns.CanonicalName(got.Name) == dns.CanonicalName(want.Name)
}

// upstreamList is one reading of the resolver file. Only the preference changes.
type upstreamList struct {
	servers []string // host:port, never empty
	first   atomic.Int32
}

func (l *upstreamList) preferred() int { return int(l.first.Load()) }
func (l *upstreamList) prefer(n int)   { l.first.Store(int32(n)) }
