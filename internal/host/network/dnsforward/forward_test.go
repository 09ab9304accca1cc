package dnsforward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

// patience bounds every wait of these tests.
const patience = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loopback is an address of 127.0.0.0/8 that no other test is likely to use.
func loopback() netip.Addr {
	return netip.AddrFrom4([4]byte{127, 54, byte(rand.IntN(250) + 1), byte(rand.IntN(250) + 1)})
}

// upstream is a resolver on port 53 of a loopback address, for that is where the
// resolver file says that resolvers are.
type upstream struct {
	addr  netip.Addr
	asked atomic.Int32
}

func newUpstream(t testing.TB, handle dns.HandlerFunc) *upstream {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run this test as root: it listens on port 53")
	}
	u := &upstream{addr: loopback()}
	at := netip.AddrPortFrom(u.addr, 53).String()
	packets, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	counted := dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		u.asked.Add(1)
		handle(w, query)
	})
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: counted}, {Listener: listener, Handler: counted}} {
		ready, done := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		go func() {
			defer close(done)
			_ = server.ActivateAndServe()
		}()
		<-ready
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-done
		})
	}
	return u
}

// record answers every question with one address.
func record(t testing.TB, address string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, query *dns.Msg) {
		reply := new(dns.Msg).SetReply(query)
		answer, err := dns.NewRR(query.Question[0].Name + " 60 IN A " + address)
		if err != nil {
			t.Error(err)
		}
		reply.Answer = append(reply.Answer, answer)
		_ = w.WriteMsg(reply)
	}
}

func code(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, query *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(query, rcode))
	}
}

// resolvConf writes the resolver file anew, as network managers do: by renaming.
func resolvConf(t testing.TB, path string, servers ...netip.Addr) {
	t.Helper()
	var text strings.Builder
	for _, server := range servers {
		text.WriteString("nameserver " + server.String() + "\n")
	}
	if err := os.WriteFile(path+".new", []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// guest is a client with an address of its own and a server that answers it.
type guest struct {
	addr   netip.Addr
	at     netip.AddrPort
	server *Server
}

func newGuest(t testing.TB, f *Forwarder) guest {
	t.Helper()
	// A port that is free on a fresh address, for both protocols.
	const port = 5354
	g := guest{addr: loopback(), at: netip.AddrPortFrom(loopback(), port)}
	server, err := f.Serve(t.Context(), g.at, g.addr)
	if err != nil {
		t.Fatalf("Serve: %v", err)
	}
	t.Cleanup(server.Close)
	g.server = server
	return g
}

func (g guest) ask(t testing.TB, network string, from netip.Addr, query *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	t.Helper()
	var local net.Addr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	if network == "tcp" {
		local = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	client := dns.Client{Net: network, Timeout: timeout, Dialer: &net.Dialer{LocalAddr: local, Timeout: timeout}}
	reply, _, err := client.Exchange(query, g.at.String())
	return reply, err
}

func (g guest) mustAsk(t testing.TB, network string) *dns.Msg {
	t.Helper()
	reply, err := g.ask(t, network, g.addr, query(), patience)
	if err != nil {
		t.Fatalf("ask over %s: %v", network, err)
	}
	return reply
}

func query() *dns.Msg { return new(dns.Msg).SetQuestion("example.test.", dns.TypeA) }

func address(reply *dns.Msg) string {
	if len(reply.Answer) != 1 {
		return dns.RcodeToString[reply.Rcode]
	}
	return reply.Answer[0].(*dns.A).A.String()
}

func newForwarder(t testing.TB, servers ...netip.Addr) (*Forwarder, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	resolvConf(t, path, servers...)
	return New(path, slog.New(slog.DiscardHandler)), path
}

func TestForwards(t *testing.T) {
	up := newUpstream(t, record(t, "192.0.2.1"))
	f, _ := newForwarder(t, up.addr)
	g := newGuest(t, f)
	for _, network := range []string{"udp", "tcp"} {
		if got := address(g.mustAsk(t, network)); got != "192.0.2.1" {
			t.Errorf("over %s: %s", network, got)
		}
	}
}

func TestAnswersTheGuestAlone(t *testing.T) {
	up := newUpstream(t, record(t, "192.0.2.1"))
	f, _ := newForwarder(t, up.addr)
	g := newGuest(t, f)
	const silence = 300 * time.Millisecond
	for _, network := range []string{"udp", "tcp"} {
		if reply, err := g.ask(t, network, loopback(), query(), silence); err == nil {
			t.Errorf("over %s a stranger got %v", network, reply)
		}
	}
	if n := up.asked.Load(); n != 0 {
		t.Errorf("the upstream was asked %d times on behalf of a stranger", n)
	}
}

func TestGoesOnToTheNextUpstream(t *testing.T) {
	failing := newUpstream(t, code(dns.RcodeServerFailure))
	working := newUpstream(t, record(t, "192.0.2.2"))
	nobody := loopback() // its port is closed
	f, _ := newForwarder(t, nobody, failing.addr, working.addr)
	g := newGuest(t, f)
	for range 3 {
		if got := address(g.mustAsk(t, "udp")); got != "192.0.2.2" {
			t.Fatalf("got %s", got)
		}
	}
	if n := failing.asked.Load(); n != 1 {
		t.Errorf("the failing upstream was asked %d times, want once: the one that answered is to come first", n)
	}
}

func TestSaysWhatTheUpstreamsSay(t *testing.T) {
	missing := newUpstream(t, code(dns.RcodeNameError))
	f, _ := newForwarder(t, missing.addr)
	if got := newGuest(t, f).mustAsk(t, "udp").Rcode; got != dns.RcodeNameError {
		t.Errorf("a name that does not exist: %s", dns.RcodeToString[got])
	}
	f, _ = newForwarder(t, loopback())
	if got := newGuest(t, f).mustAsk(t, "tcp").Rcode; got != dns.RcodeServerFailure {
		t.Errorf("no upstream: %s", dns.RcodeToString[got])
	}
}

func TestReadsTheResolverFileAgain(t *testing.T) {
	before, after := newUpstream(t, record(t, "192.0.2.3")), newUpstream(t, record(t, "192.0.2.4"))
	f, path := newForwarder(t, before.addr)
	g := newGuest(t, f)
	if got := address(g.mustAsk(t, "udp")); got != "192.0.2.3" {
		t.Fatalf("before: %s", got)
	}
	resolvConf(t, path, after.addr)
	if got := address(g.mustAsk(t, "udp")); got != "192.0.2.4" {
		t.Errorf("after: %s", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	list, err := f.upstreams.current()
	if err != nil || len(list.servers) != 1 || list.servers[0] != "127.0.0.1:53" {
		t.Errorf("without a file: %v, %v", list, err)
	}
}

func TestTruncationReachesTheGuest(t *testing.T) {
	long := newUpstream(t, func(w dns.ResponseWriter, query *dns.Msg) {
		reply := new(dns.Msg).SetReply(query)
		for range 40 {
			text := &dns.TXT{Hdr: dns.RR_Header{Name: query.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}}
			text.Txt = []string{strings.Repeat("x", 200)}
			reply.Answer = append(reply.Answer, text)
		}
		if w.RemoteAddr().Network() == "udp" {
			reply.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(reply)
	})
	f, _ := newForwarder(t, long.addr)
	g := newGuest(t, f)
	if reply := g.mustAsk(t, "udp"); !reply.Truncated {
		t.Error("the guest does not learn that the answer was cut")
	}
	if reply := g.mustAsk(t, "tcp"); reply.Truncated || len(reply.Answer) != 40 {
		t.Errorf("over TCP: truncated %t, %d records", reply.Truncated, len(reply.Answer))
	}
}

func TestFloodIsRefusedAtOnce(t *testing.T) {
	var end func()
	handle, arrived := stuckUntil(&end)
	up := newUpstream(t, handle)
	// Cleanups run from the last to the first: the handlers end before their server does.
	t.Cleanup(func() { end() })
	f, _ := newForwarder(t, up.addr)
	g, other := newGuest(t, f), newGuest(t, f)
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(g.addr, 0)), net.UDPAddrFromAddrPort(g.at))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	packed, err := query().Pack()
	if err != nil {
		t.Fatal(err)
	}
	for range guestQueries {
		if _, err := conn.Write(packed); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.After(patience)
	for range guestQueries {
		select {
		case <-arrived:
		case <-deadline:
			t.Fatal("the upstream was not asked")
		}
	}
	begin := time.Now()
	if got := g.mustAsk(t, "udp").Rcode; got != dns.RcodeServerFailure {
		t.Errorf("beyond the limit: %s", dns.RcodeToString[got])
	}
	if took := time.Since(begin); took >= upstreamTimeout {
		t.Errorf("the refusal took %v", took)
	}
	if _, err := other.ask(t, "udp", other.addr, query(), 300*time.Millisecond); err == nil {
		t.Error("the stuck upstream answered")
	}
	select {
	case <-arrived:
	case <-time.After(patience):
		t.Error("one guest's flood keeps another's query from the upstream")
	}
	// Close does not wait for the upstream.
	begin = time.Now()
	g.server.Close()
	if took := time.Since(begin); took >= upstreamTimeout {
		t.Errorf("Close took %v", took)
	}
}

// stuckUntil is a handler that answers nothing and returns when end is called.
func stuckUntil(end *func()) (dns.HandlerFunc, chan struct{}) {
	arrived, ended := make(chan struct{}, 4*guestQueries), make(chan struct{})
	*end = func() { close(ended) }
	return func(dns.ResponseWriter, *dns.Msg) {
		arrived <- struct{}{}
		<-ended
	}, arrived
}

func TestConnectionsAreBounded(t *testing.T) {
	f, _ := newForwarder(t, loopback())
	g := newGuest(t, f)
	dial := func() net.Conn {
		conn, err := net.DialTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(g.addr, 0)), net.TCPAddrFromAddrPort(g.at))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	var first net.Conn
	for range guestConns {
		first = dial()
	}
	excess := dial()
	if err := excess.SetReadDeadline(time.Now().Add(connReadTimeout / 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := excess.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("one connection too many stays open")
	}
	if err := first.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection within the limit: %v", err)
	}
}

func TestRefusesWhatItCannotForward(t *testing.T) {
	up := newUpstream(t, record(t, "192.0.2.5"))
	f, _ := newForwarder(t, up.addr)
	g := newGuest(t, f)
	transfer := new(dns.Msg).SetAxfr("example.test.")
	notify := new(dns.Msg).SetNotify("example.test.")
	for name, test := range map[string]struct {
		query *dns.Msg
		want  int
	}{
		"zone transfer": {transfer, dns.RcodeRefused},
		"notify":        {notify, dns.RcodeNotImplemented},
	} {
		reply, err := g.ask(t, "tcp", g.addr, test.query, patience)
		if err != nil || reply.Rcode != test.want {
			t.Errorf("%s: %v, %v, want %s", name, reply, err, dns.RcodeToString[test.want])
		}
	}
	if n := up.asked.Load(); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}

	// A header that promises a question, and then nothing.
	conn, err := net.DialTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(g.addr, 0)), net.TCPAddrFromAddrPort(g.at))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte{0, 12, 0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	header := make([]byte, 6)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatal(err)
	}
	if rcode := header[5] & 0xf; rcode != dns.RcodeFormatError {
		t.Errorf("a bare header: %s", dns.RcodeToString[int(rcode)])
	}
}

func TestForgedAnswersAreNotTaken(t *testing.T) {
	asked := query()
	other := new(dns.Msg).SetQuestion("other.test.", dns.TypeA)
	otherID := new(dns.Msg).SetReply(asked)
	otherID.Id++
	otherName := new(dns.Msg).SetReply(other)
	otherName.Id = asked.Id
	noQuestion := new(dns.Msg).SetReply(asked)
	noQuestion.Question = nil
	mixedCase := new(dns.Msg).SetReply(asked)
	mixedCase.Question = []dns.Question{{Name: "eXample.TEST.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
	for name, test := range map[string]struct {
		reply *dns.Msg
		want  bool
	}{
		"its answer":        {new(dns.Msg).SetReply(asked), true},
		"other case":        {mixedCase, true},
		"other id":          {otherID, false},
		"other name":        {otherName, false},
		"without question":  {noQuestion, false},
		"the question back": {asked, false},
	} {
		if got := answers(test.reply, asked); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestEndsWithItsContext(t *testing.T) {
	var end func()
	handle, arrived := stuckUntil(&end)
	up := newUpstream(t, handle)
	t.Cleanup(func() { end() })
	f, _ := newForwarder(t, up.addr)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	begin := time.Now()
	if _, err := f.resolve(ctx, "udp", query()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took >= upstreamTimeout {
		t.Errorf("it took %v", took)
	}
}

// FuzzAnswer feeds the handler what a guest may send.
func FuzzAnswer(f *testing.F) {
	packed, err := query().Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed)
	f.Add([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	f.Add(packed[:len(packed)-3])
	path := filepath.Join(f.TempDir(), "resolv.conf")
	// The parser takes it for a server and the dialer does not: every query fails at once.
	if err := os.WriteFile(path, []byte("nameserver nowhere.invalid:x\n"), 0o600); err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s := &Server{
		forwarder: New(path, slog.New(slog.DiscardHandler)), queries: make(chan struct{}, guestQueries),
		ctx: ctx, log: slog.New(slog.DiscardHandler),
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		asked := new(dns.Msg)
		if asked.Unpack(message) != nil {
			return
		}
		reply := s.answer("udp", asked)
		reply.Truncate(replySize(asked))
		if !reply.Response || reply.Id != asked.Id {
			t.Errorf("%v answers %v", reply, asked)
		}
	})
}
