package dnsforward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	// guestQueries bounds the queries of one guest that wait for an upstream; what it
	// asks beyond them is answered with SERVFAIL at once.
	guestQueries = 64

	// guestConns bounds the TCP connections that one guest holds open to its server.
	guestConns = 32

	// connReadTimeout is how long a new TCP connection may stay silent, and
	// connIdleTimeout how long one may after a query.
	connReadTimeout = 5 * time.Second
	connIdleTimeout = 8 * time.Second

	// packetReadTimeout only sets how often an idle UDP server wakes up for nothing.
	packetReadTimeout = time.Hour

	// querySize is the largest UDP query that is read, in bytes. Queries with cookies
	// and padding outgrow the classic 512.
	querySize = 1232

	// busyTime is how long an address that is in use is tried again, and busyRetry how
	// often. A process that is just being started holds copies of all our sockets until
	// it executes its program, and with them the address of a server that was closed.
	busyTime  = time.Second
	busyRetry = 10 * time.Millisecond
)

// Server answers the DNS queries of one guest. Close it; it is safe for concurrent use.
type Server struct {
	forwarder *Forwarder
	guest     netip.Addr
	queries   chan struct{} // a token for each query of this guest in flight
	servers   []*dns.Server
	running   sync.WaitGroup
	ctx       context.Context // ends with Close, and with it every query in flight
	cancel    context.CancelFunc
	log       *slog.Logger
}

// Serve listens on listen, over UDP and TCP, and answers queries that come from guest and
// nobody else's, until Close. It returns when both sockets are ready.
func (f *Forwarder) Serve(ctx context.Context, listen netip.AddrPort, guest netip.Addr) (*Server, error) {
	packets, listener, err := open(ctx, listen)
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	s := &Server{
		forwarder: f,
		guest:     guest,
		queries:   make(chan struct{}, guestQueries),
		log:       f.log.With("guest", guest),
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	bounded := &boundedListener{Listener: listener, guest: guest, conns: make(chan struct{}, guestConns)}
	s.start(&dns.Server{PacketConn: packets, Handler: s.handler("udp"), UDPSize: querySize, ReadTimeout: packetReadTimeout})
	s.start(&dns.Server{
		Listener: bounded, Handler: s.handler("tcp"), ReadTimeout: connReadTimeout,
		IdleTimeout: func() time.Duration { return connIdleTimeout },
	})
	return s, nil
}

// open opens both sockets. It waits a moment for an address that is in use.
func open(ctx context.Context, listen netip.AddrPort) (net.PacketConn, net.Listener, error) {
	tick := time.NewTicker(busyRetry)
	defer tick.Stop()
	for end := time.Now().Add(busyTime); ; {
		packets, listener, err := openOnce(ctx, listen)
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
			return packets, listener, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func openOnce(ctx context.Context, listen netip.AddrPort) (net.PacketConn, net.Listener, error) {
	var config net.ListenConfig
	packets, err := config.ListenPacket(ctx, "udp4", listen.String())
	if err != nil {
		return nil, nil, err
	}
	listener, err := config.Listen(ctx, "tcp4", listen.String())
	if err != nil {
		return nil, nil, errors.Join(err, packets.Close())
	}
	return packets, listener, nil
}

// start runs server on a goroutine and returns once it serves: a dns.Server that is shut
// down before it has begun would begin afterwards, and stay.
func (s *Server) start(server *dns.Server) {
	ready := make(chan struct{})
	once := sync.OnceFunc(func() { close(ready) })
	server.NotifyStartedFunc = once
	s.servers = append(s.servers, server)
	s.running.Go(func() {
		defer once()
		if err := server.ActivateAndServe(); err != nil && s.ctx.Err() == nil {
			s.log.Error("the DNS forwarder of a sandbox ended", "error", err)
		}
	})
	<-ready
}

// Close stops the server and returns when no goroutine and no socket of it is left.
func (s *Server) Close() {
	s.cancel()
	for _, server := range s.servers {
		// The only error says that the server is not running, which is what we want.
		_ = server.Shutdown()
	}
	s.running.Wait()
}

// handler answers queries that came over network ("udp" or "tcp").
func (s *Server) handler(network string) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		if !from(w.RemoteAddr(), s.guest) {
			return
		}
		reply := s.answer(network, query)
		if network == "udp" {
			reply.Truncate(replySize(query))
		}
		// A guest that does not take its answer is its own affair.
		_ = w.WriteMsg(reply)
	})
}

// answer never returns nil: what cannot be resolved is answered with the code that says so.
func (s *Server) answer(network string, query *dns.Msg) *dns.Msg {
	if query.Opcode != dns.OpcodeQuery {
		return refusal(query, dns.RcodeNotImplemented)
	}
	if len(query.Question) != 1 {
		// The library lets a bare header through that only promises a question.
		return refusal(query, dns.RcodeFormatError)
	}
	switch query.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		// A zone transfer is an answer of many messages, which a forwarder of
		// single answers would cut short without a word.
		return refusal(query, dns.RcodeRefused)
	}
	if !acquire(s.queries) {
		return refusal(query, dns.RcodeServerFailure)
	}
	defer func() { <-s.queries }()
	reply, err := s.forwarder.resolve(s.ctx, network, query)
	if err != nil {
		s.log.Debug("a DNS query failed", "error", err)
		return refusal(query, dns.RcodeServerFailure)
	}
	return reply
}

// refusal is the answer to query that holds nothing but code.
func refusal(query *dns.Msg, code int) *dns.Msg {
	reply := new(dns.Msg).SetRcode(query, code)
	reply.RecursionAvailable = true
	return reply
}

// replySize is the largest UDP answer that the asker said it takes, in bytes (RFC 6891).
func replySize(query *dns.Msg) int {
	if opt := query.IsEdns0(); opt != nil && opt.UDPSize() > dns.MinMsgSize {
		return int(opt.UDPSize())
	}
	return dns.MinMsgSize
}

// from reports whether a packet's or connection's remote address is guest's.
func from(remote net.Addr, guest netip.Addr) bool {
	addr, err := netip.ParseAddrPort(remote.String())
	return err == nil && addr.Addr().Unmap() == guest
}

// boundedListener closes connections that are not the guest's, or too many, as soon as
// they are made.
type boundedListener struct {
	net.Listener
	guest netip.Addr
	conns chan struct{}
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if from(conn.RemoteAddr(), l.guest) && acquire(l.conns) {
			release := sync.OnceFunc(func() { <-l.conns })
			return &boundedConn{Conn: conn, release: release}, nil
		}
		_ = conn.Close()
	}
}

// boundedConn gives its place in the listener back when it is closed.
type boundedConn struct {
	net.Conn
	release func()
}

func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
