// Package zonetest is a DNS server for tests, of one zone, which takes dynamic updates as the
// RFCs say: signed with a key that it knows, and refused with a reason otherwise. It must know
// nothing of those who ask.
package zonetest

import (
	"context"
	"encoding/base64"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What the server's key is called, and how it signs.
const (
	keyName = "wrenn-test."
	fudge   = 300 // seconds
)

// Zone is a running server, on UDP and TCP. It answers for the address of any name in its zone
// with this machine's.
type Zone struct {
	// Name is the zone's, and Address where the server listens.
	Name, Address string

	mu sync.Mutex
	// refuses is whether the key may not change the zone.
	refuses bool
	texts   map[string][]string
	// seen has all texts that were ever in the zone.
	seen []string
}

// Secret is the secret of the server's key, in base64.
var Secret = base64.StdEncoding.EncodeToString([]byte("a secret of 32 bytes for tests!!"))

// Key is the server's key with another secret, in the form algorithm:name:secret.
func Key(secret string) string {
	return "hmac-sha256:" + strings.TrimSuffix(keyName, ".") + ":" + secret
}

// Start starts a server, which ends with the test.
func Start(t *testing.T, name string) *Zone {
	t.Helper()
	z := &Zone{Name: dns.Fqdn(name), texts: map[string][]string{}}
	listener, packets := listen(t)
	z.Address = listener.Addr().String()
	for _, s := range []*dns.Server{{Listener: listener}, {PacketConn: packets}} {
		s.TsigSecret = map[string]string{keyName: Secret}
		s.Handler = dns.HandlerFunc(z.serve)
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		started, served := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { served <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := s.ShutdownContext(context.Background()); err != nil {
				t.Error(err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
	return z
}

// listen finds a port that is free for both.
func listen(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	var last error
	for range 10 {
		packets, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", packets.LocalAddr().String())
		if err == nil {
			return listener, packets
		}
		last = err
		_ = packets.Close()
	}
	t.Fatal(last)
	return nil, nil
}

// Refuse makes the server refuse all changes, or not.
func (z *Zone) Refuse(refuse bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.refuses = refuse
}

// Texts returns the texts that are there at a name, and how many there ever were at any.
func (z *Zone) Texts(name string) (now []string, ever int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.texts[dns.CanonicalName(name)]), len(z.seen)
}

func (z *Zone) serve(w dns.ResponseWriter, question *dns.Msg) {
	answer := new(dns.Msg).SetReply(question)
	if question.Opcode == dns.OpcodeUpdate {
		z.update(w, question, answer)
	} else {
		z.answer(question, answer)
	}
	_ = w.WriteMsg(answer) // who asked asks again
}

// answer answers a question.
func (z *Zone) answer(question, answer *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	answer.Authoritative = true
	soa := &dns.SOA{Hdr: header(z.Name, dns.TypeSOA), Ns: "ns." + z.Name, Mbox: "root." + z.Name, Serial: 1, Minttl: 1}
	for _, q := range question.Question {
		name := dns.CanonicalName(q.Name)
		switch {
		case !dns.IsSubDomain(z.Name, name):
			answer.Rcode = dns.RcodeRefused
		case q.Qtype == dns.TypeSOA && name == z.Name:
			answer.Answer = append(answer.Answer, soa)
		case q.Qtype == dns.TypeA:
			answer.Answer = append(answer.Answer, &dns.A{Hdr: header(q.Name, dns.TypeA), A: net.IPv4(127, 0, 0, 1)})
		case q.Qtype == dns.TypeTXT:
			for _, text := range z.texts[name] {
				answer.Answer = append(answer.Answer, &dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{text}})
			}
		}
	}
	if len(answer.Answer) == 0 {
		answer.Ns = append(answer.Ns, soa)
	}
}

func header(name string, of uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: of, Class: dns.ClassINET, Ttl: 1}
}

// update does what a message asks for, if its signature is good (RFC 8945, section 5).
func (z *Zone) update(w dns.ResponseWriter, question, answer *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	signature := question.IsTsig()
	switch err := w.TsigStatus(); {
	case signature == nil:
		answer.Rcode = dns.RcodeRefused
		return
	case err != nil:
		answer.Rcode = dns.RcodeNotAuth
		answer.SetTsig(signature.Hdr.Name, signature.Algorithm, fudge, time.Now().Unix())
		answer.IsTsig().Error = dns.RcodeBadSig
		if signature.Hdr.Name != keyName {
			answer.IsTsig().Error = dns.RcodeBadKey
		}
		return
	case z.refuses:
		answer.Rcode = dns.RcodeRefused
	case len(question.Question) != 1 || dns.CanonicalName(question.Question[0].Name) != z.Name:
		answer.Rcode = dns.RcodeNotZone
	default:
		z.change(question.Ns)
	}
	answer.SetTsig(signature.Hdr.Name, signature.Algorithm, fudge, time.Now().Unix())
}

// change adds and removes texts. The caller holds z.mu.
func (z *Zone) change(records []dns.RR) {
	for _, r := range records {
		txt, ok := r.(*dns.TXT)
		if !ok {
			continue
		}
		name, text := dns.CanonicalName(txt.Hdr.Name), strings.Join(txt.Txt, "")
		if txt.Hdr.Class == dns.ClassNONE {
			z.texts[name] = slices.DeleteFunc(z.texts[name], func(s string) bool { return s == text })
			continue
		}
		z.texts[name] = append(z.texts[name], text)
		z.seen = append(z.seen, text)
	}
}
