// Package dnsupdate changes records of a DNS zone at its primary server, by dynamic updates
// (RFC 2136) signed with a shared key (TSIG, RFC 8945), which BIND, Knot, PowerDNS and others
// take. It is how certmagic answers the challenges of a certificate authority that are asked
// of the DNS.
//
// It must not know what the records are for, nor certificates.
package dnsupdate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// answerTime bounds one update.
	answerTime = 10 * time.Second
	// clockFudge is how far the server's clock may be from ours, in seconds; RFC 8945
	// recommends it.
	clockFudge = 300
	// defaultPort is where name servers listen.
	defaultPort = "53"
)

// Server is a zone's primary server. It is safe for concurrent use.
type Server struct {
	address string
	keyFile string
}

// New returns the server at an address, whose port may be left out, and the file with the key
// that it takes. The file is read at each update, so that another key needs no restart.
func New(address, keyFile string) *Server {
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, defaultPort)
	}
	return &Server{address: address, keyFile: keyFile}
}

// AppendRecords implements libdns.RecordAppender: it adds records beside those that there are.
func (s *Server) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, s.update(ctx, zone, records, (*dns.Msg).Insert)
}

// DeleteRecords implements libdns.RecordDeleter: it removes these records and leaves others of
// the same name.
func (s *Server) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, s.update(ctx, zone, records, (*dns.Msg).Remove)
}

// update sends one update, which the server does whole or not at all.
func (s *Server) update(ctx context.Context, zone string, records []libdns.Record, change func(*dns.Msg, []dns.RR)) error {
	key, err := ReadKey(s.keyFile)
	if err != nil {
		return err
	}
	rrs := make([]dns.RR, len(records))
	for i, r := range records {
		if rrs[i], err = resourceRecord(zone, r.RR()); err != nil {
			return err
		}
	}
	question := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	change(question, rrs)
	question.SetTsig(key.Name, key.Algorithm, clockFudge, time.Now().Unix())
	// Over TCP an answer is the server's, however large, and need not be asked for twice.
	client := &dns.Client{Net: "tcp", Timeout: answerTime, TsigSecret: map[string]string{key.Name: key.secret}}
	answer, _, err := client.ExchangeContext(ctx, question, s.address)
	return s.judge(zone, key, answer, err)
}

// judge is what an answer comes to. A refusal need not be signed: who forges one could as
// well have lost it. A consent must be.
func (s *Server) judge(zone string, key Key, answer *dns.Msg, err error) error {
	switch {
	case answer != nil && answer.Rcode != dns.RcodeSuccess:
		return s.refusal(zone, key, answer)
	case errors.Is(err, dns.ErrTime):
		return fault.New(fault.HostUnavailable, "the clock of the DNS server %s is not that of this machine; set both", s.address)
	case errors.Is(err, dns.ErrSig), errors.Is(err, dns.ErrSecret), errors.Is(err, dns.ErrKeyAlg), err == nil && answer.IsTsig() == nil:
		return fault.New(fault.HostUnavailable, "the answer of the DNS server %s is not signed with the key %q; it must know the key of the key file", s.address, key.Name)
	case err != nil:
		return fault.Wrap(err, fault.HostUnavailable, "the DNS server %s does not answer an update (%v); look at its address and whether it listens on TCP", s.address, err)
	}
	return nil
}

// refusal says why a server has not done an update.
func (s *Server) refusal(zone string, key Key, answer *dns.Msg) error {
	reason, _ := dns.RcodeToString[answer.Rcode]
	advice := "look at its log"
	if tsig := answer.IsTsig(); tsig != nil && tsig.Error != dns.RcodeSuccess {
		reason = dns.RcodeToString[int(tsig.Error)]
		switch int(tsig.Error) {
		case dns.RcodeBadKey:
			advice = fmt.Sprintf("it knows no key of the name %q and this algorithm", key.Name)
		case dns.RcodeBadSig: // the same number as BADVERS, which has no place here
			reason, advice = "BADSIG", fmt.Sprintf("the secret of its key %q is another one than in the key file", key.Name)
		case dns.RcodeBadTime:
			advice = "its clock is not that of this machine; set both"
		}
	} else {
		switch answer.Rcode {
		case dns.RcodeRefused:
			advice = fmt.Sprintf("allow the key %q to change the zone", key.Name)
		case dns.RcodeNotAuth, dns.RcodeNotZone:
			advice = "name the primary server of the zone, and look at the key"
		case dns.RcodeNotImplemented:
			advice = "it takes no dynamic updates; name one that does"
		}
	}
	return fault.New(fault.HostUnavailable, "the DNS server %s refuses to change the zone %s (%s): %s", s.address, dns.Fqdn(zone), reason, advice)
}

// resourceRecord is a record as it goes over the wire.
func resourceRecord(zone string, r libdns.RR) (dns.RR, error) {
	if r.Type != "TXT" {
		return nil, fault.New(fault.Internal, "a record of type %s was to be changed; only TXT is known here", r.Type)
	}
	name := dns.Fqdn(libdns.AbsoluteName(r.Name, dns.Fqdn(zone)))
	return &dns.TXT{
		Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(r.TTL.Seconds())},
		Txt: []string{r.Data},
	}, nil
}
